"""Requests whose answers are compared: kinds of request that the golden list does not have.

Each is small (64x64 pixels, few steps), so that all of them take minutes. Values that the list
leaves out are those of :data:`scripts.fidelity.case.BASE`.
"""

from __future__ import annotations

from scripts.fidelity import (
    cases_hypertile,
    cases_others,
    cases_passes,
    cases_prompts,
    cases_sampling,
    cases_scripts,
    cases_sd3,
)
from scripts.fidelity.case import Case


def all_cases() -> list[Case]:
    # Others first: the webui names a second checkpoint with its hash once that has been loaded.
    plain = (cases_others, cases_scripts, cases_sampling, cases_prompts, cases_passes)
    found = [case for part in (*plain, cases_hypertile, cases_sd3) for case in part.cases()]
    # Last: a webui that has held weights in 8 bits makes its later pictures a little differently.
    found += cases_others.eight_bits()
    names = [case.name for case in found]
    assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
    return found
