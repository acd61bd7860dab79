"""The picture fields of a native payload: which there are, and how ControlNet's units nest them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sd_cloud.errors import BadRequest
from sd_cloud.job import Kind

#: Fields of a request that are one picture, or nothing.
SINGLE_PICTURES = ("mask", "latent_mask", "firstpass_image")
#: Fields of a ControlNet unit that are a picture, a pair or a list of them (``input_image`` and
#: ``mask_image`` are other names for the first two).
UNIT_PICTURES = ("image", "input_image", "mask", "mask_image", "effective_region_mask")
#: The EAS edition's links of a unit, and the field that each fills in.
UNIT_LINKS = {"image_link": ("image", "input_image"), "mask_link": ("mask", "mask_image")}


@dataclass(frozen=True)
class Slot:
    """One place in a payload where a picture stands as text."""

    container: Any
    key: Any
    field: str

    @property
    def text(self) -> str:
        return str(self.container[self.key])

    def fill(self, text: str) -> None:
        self.container[self.key] = text


def is_controlnet(script: object) -> bool:
    return isinstance(script, str) and script.lower() == "controlnet"


def controlnet_units(payload: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Each ControlNet unit with its field. Units in the positional form of the page have no names."""
    scripts = payload.get("alwayson_scripts")
    for name, block in scripts.items() if isinstance(scripts, Mapping) else ():
        units = block.get("args") if is_controlnet(name) and isinstance(block, Mapping) else None
        for index, unit in enumerate(units if isinstance(units, list) else ()):
            if isinstance(unit, dict):
                yield unit, f"alwayson_scripts.{name}.args[{index}]"


def take_links(payload: Mapping[str, Any]) -> dict[str, str]:
    """Put each unit's ``image_link`` and ``mask_link`` where its picture belongs. Changes the units.

    A link goes before a picture in the same unit. Returns, for each field that was filled in, the
    field that the caller knows it by.
    """
    told_as: dict[str, str] = {}
    for unit, field in controlnet_units(payload):
        for link_name, (name, alias) in UNIT_LINKS.items():
            link = unit.pop(link_name, None)
            if link is None or link == "":
                continue
            if not isinstance(link, str):
                raise BadRequest("expected a link", field=f"{field}.{link_name}")
            unit.pop(alias, None)
            if name == "image" and isinstance(unit.get("image"), dict):
                unit["image"]["image"] = link
                told_as[f"{field}.image.image"] = f"{field}.{link_name}"
            else:
                unit[name] = link
                told_as[f"{field}.{name}"] = f"{field}.{link_name}"
    return told_as


def picture_slots(kind: Kind, payload: dict[str, Any]) -> Iterator[Slot]:
    """Every place of a payload where a picture stands. Raises BadRequest for one that is no text."""
    if kind == "extras":
        yield from _extras(payload)
        return
    if kind == "interrogate":
        yield from _required(payload, "image", "image")
        return
    if kind == "detect":
        yield from _all(payload, "controlnet_input_images")
        yield from _all(payload, "controlnet_masks")
        return
    yield from _all(payload, "init_images")
    for name in SINGLE_PICTURES:
        yield from _nested(payload, name, name)
    for unit, field in controlnet_units(payload):
        if unit.get("enabled") is False:
            continue
        for name in UNIT_PICTURES:
            yield from _nested(unit, name, f"{field}.{name}")
        if isinstance(unit.get("batch_images"), list):
            yield from _nested(unit, "batch_images", f"{field}.batch_images")


def _extras(payload: dict[str, Any]) -> Iterator[Slot]:
    batch = payload.get("imageList")
    if batch is None:
        yield from _required(payload, "image", "image")
        return
    if not isinstance(batch, list):
        raise BadRequest("expected a list", field="imageList")
    for index, one in enumerate(batch):
        if not isinstance(one, dict):
            raise BadRequest('expected {"data": ..., "name": ...}', field=f"imageList[{index}]")
        yield from _required(one, "data", f"imageList[{index}].data")


def _all(payload: dict[str, Any], name: str) -> Iterator[Slot]:
    pictures = payload.get(name)
    if pictures is None:
        return
    if not isinstance(pictures, list):
        raise BadRequest("expected a list of pictures", field=name)
    for index in range(len(pictures)):
        yield from _required(pictures, index, f"{name}[{index}]")


def _required(container: Any, key: Any, field: str) -> Iterator[Slot]:
    value = container.get(key) if isinstance(container, dict) else container[key]
    if not isinstance(value, str) or not value.strip():
        raise BadRequest("expected a picture: base64, a data: URL or a link", field=field)
    yield Slot(container, key, field)


def _nested(container: Any, key: Any, field: str) -> Iterator[Slot]:
    """A text, ``{"image": ..., "mask": ...}``, or a list of either; nothing where there is nothing."""
    value = container.get(key) if isinstance(container, dict) else container[key]
    if value is None or value == "":
        return
    if isinstance(value, str):
        yield Slot(container, key, field)
    elif isinstance(value, dict):
        for name in ("image", "mask"):
            yield from _nested(value, name, f"{field}.{name}")
    elif isinstance(value, list):
        for index in range(len(value)):
            yield from _nested(value, index, f"{field}[{index}]")
    else:
        raise BadRequest("expected a picture: base64, a data: URL or a link", field=field)
