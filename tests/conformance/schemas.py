"""OpenAPI files made comparable: one flat table of facts each, so that a difference has one address."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

#: Texts for people. Ours are our own; nothing on the wire depends on them.
PROSE = ("description", "summary")


def native_part(document: dict[str, Any]) -> dict[str, Any]:
    """Only the native routes and the models they use; the rest is what other dialects say."""
    paths = {path: route for path, route in document["paths"].items() if path.startswith("/sdapi/v1/")}
    schemas = document["components"]["schemas"]
    used: set[str] = set()
    found = _models_in(paths)
    while found - used:
        name = (found - used).pop()
        used.add(name)
        found |= _models_in(schemas[name])
    return {"paths": paths, "components": {"schemas": {name: schemas[name] for name in used}}}


def _models_in(part: Any) -> set[str]:
    if isinstance(part, dict):
        named = {part["$ref"].rsplit("/", 1)[-1]} if isinstance(part.get("$ref"), str) else set()
        return named.union(*map(_models_in, part.values()))
    return set().union(*map(_models_in, part)) if isinstance(part, list) else set()


def facts(document: dict[str, Any]) -> dict[str, Any]:
    """``POST /path body``, ``POST /path 200``, ``Model.field``: each with what the file says of it."""
    return {**dict(_routes(document)), **dict(_fields(document))}


def _routes(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            where = f"{method.upper()} {path}"
            yield f"{where} operationId", route["operationId"]
            yield f"{where} security", route.get("security")
            for parameter in route.get("parameters", []):
                told = {key: parameter.get(key, False) for key in ("in", "required")}
                yield f"{where} parameter {parameter['name']}", {**told, **_plain(parameter["schema"])}
            body = route.get("requestBody")
            if body:
                yield f"{where} body required", body.get("required")
                for kind, content in body["content"].items():
                    yield f"{where} body {kind}", _plain(content["schema"])
            for status, answer in route["responses"].items():
                for kind, content in answer.get("content", {}).items():
                    yield f"{where} {status} {kind}", _plain(content.get("schema", {}))


def _fields(document: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, schema in document["components"]["schemas"].items():
        yield f"{name} type", schema.get("type")
        required = schema.get("required", [])
        for field, told in schema.get("properties", {}).items():
            yield f"{name}.{field}", {**_plain(told), "required": field in required}


def _plain(schema: Any) -> Any:
    """A schema without prose and titles, and without the statement that anything goes, which is the default.

    Numbers compare by value: ``0`` and ``0.0`` are one default.
    """
    if isinstance(schema, dict):
        return {
            key: _plain(value)
            for key, value in schema.items()
            if key not in (*PROSE, "title") and (key, value) != ("additionalProperties", True)
        }
    return [_plain(one) for one in schema] if isinstance(schema, list) else schema


def differences(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, str]:
    """Address: what differs there."""
    found = {}
    for address in sorted({*theirs, *ours}):
        if address not in ours:
            found[address] = f"missing; the webui says {theirs[address]}"
        elif address not in theirs:
            found[address] = f"only ours: {ours[address]}"
        elif theirs[address] != ours[address]:
            found[address] = f"the webui says {theirs[address]}, ours {ours[address]}"
    return found
