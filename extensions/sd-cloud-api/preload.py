"""The webui's hook for launch flags: ours, and only those that nobody has declared before us."""

import argparse
import os
import sys
from pathlib import Path


def preload(parser: argparse.ArgumentParser) -> None:
    here = str(Path(__file__).resolve().parent)
    if here not in sys.path:
        sys.path.insert(0, here)
    from sd_cloud.flags import OURS

    declared = {option for action in parser._actions for option in action.option_strings}
    for flag in OURS:
        if flag.name in declared:
            continue
        text = os.environ.get(flag.variable)
        flag.add_to(parser, flag.initial if text is None else flag.convert(text))
