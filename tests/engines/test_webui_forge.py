from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sd_cloud.engines.webui_forge import MODULES, is_forge, models_follow_options, with_vae
from sd_cloud.errors import CheckpointNotFound


@pytest.fixture
def forge(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As much of Forge's modules as is asked for. ``loaded``: what each picture was made with."""
    modules, modules_forge = ModuleType("modules"), ModuleType("modules_forge")
    forge: Any = SimpleNamespace(modules=modules, loaded=[])
    infos = {name: SimpleNamespace(filename=f"/m/{name}") for name in ("a", "b")}
    opts = SimpleNamespace(sd_model_checkpoint="a", forge_additional_modules=[])
    data = SimpleNamespace(forge_loading_parameters={"checkpoint_info": infos["a"], "additional_modules": []})

    def refresh() -> None:
        data.forge_loading_parameters = {
            "checkpoint_info": infos[opts.sd_model_checkpoint],
            "additional_modules": opts.forge_additional_modules,
        }

    files = {"one.safetensors": "/m/VAE/one.safetensors", "t5.safetensors": "/m/text_encoder/t5.safetensors"}
    main_entry = SimpleNamespace(
        module_list={},
        refresh_models=lambda: main_entry.module_list.update(files),
        refresh_model_loading_parameters=refresh,
    )
    modules.processing = SimpleNamespace(  # type: ignore[attr-defined]
        manage_model_and_prompt_cache=lambda p: forge.loaded.append(
            data.forge_loading_parameters["checkpoint_info"].filename
        )
    )
    modules.sd_models = SimpleNamespace(  # type: ignore[attr-defined]
        model_data=data, select_checkpoint=lambda: infos[opts.sd_model_checkpoint]
    )
    modules.shared = SimpleNamespace(opts=opts)  # type: ignore[attr-defined]
    modules.sd_vae = SimpleNamespace(  # type: ignore[attr-defined]
        vae_dict={"one.safetensors": "/m/VAE/one.safetensors", "two.vae.pt": "/m/Stable-diffusion/two.vae.pt"}
    )
    modules_forge.main_entry = main_entry  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "modules", modules)
    monkeypatch.setitem(sys.modules, "modules_forge", modules_forge)
    return forge


def test_without_its_modules_this_is_not_forge() -> None:
    assert not is_forge()


def test_a_picture_is_made_with_what_the_options_say_whatever_was_selected_last(forge: Any) -> None:
    models_follow_options()
    models_follow_options()
    processing, opts = forge.modules.processing, forge.modules.shared.opts
    processing.manage_model_and_prompt_cache(None)
    opts.sd_model_checkpoint = "b"  # as a job's own options have it
    processing.manage_model_and_prompt_cache(None)
    opts.sd_model_checkpoint = "a"
    processing.manage_model_and_prompt_cache(None)
    assert forge.loaded == ["/m/a", "/m/b", "/m/a"]


def test_a_vae_takes_the_place_of_another_and_the_text_encoders_stay(forge: Any) -> None:
    encoder = "/m/text_encoder/t5.safetensors"
    configured = {MODULES: ["/m/Stable-diffusion/two.vae.pt", encoder]}
    assert with_vae("one.safetensors", configured) == {MODULES: [encoder, "/m/VAE/one.safetensors"]}
    assert with_vae("None", configured) == {MODULES: [encoder]}
    assert with_vae("Automatic", configured) == {}


def test_a_vae_that_forge_does_not_take_as_a_module_is_refused(forge: Any) -> None:
    with pytest.raises(CheckpointNotFound, match=r"two\.vae\.pt"):
        with_vae("two.vae.pt", {})
