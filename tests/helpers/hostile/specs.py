"""Hostile reward documents: JSON texts, bytes and mappings."""

import copy
import json
from typing import Any


def documents(spec: dict[str, Any]) -> dict[str, Any]:
    """
    Hostile variants of a valid spec.

    :param spec: the valid one, for the libero_object-4 fixture.
    """
    text = json.dumps(spec)

    def changed(**values: Any) -> dict[str, Any]:
        return {**copy.deepcopy(spec), **values}

    def stage(**values: Any) -> dict[str, Any]:
        new = copy.deepcopy(spec)
        new["tracks"][0]["stages"][0].update(values)
        return new

    def name(value: Any) -> dict[str, Any]:
        new = copy.deepcopy(spec)
        new["tracks"][0]["name"] = value
        return new

    rung = {"threshold": 0.5, "value": 0.1}
    ladder = copy.deepcopy(spec["tracks"][0]["stages"][0]["ladder"])
    deep: dict[str, Any] = {"kind": "goal", "index": 0}
    for _ in range(30):
        deep = {"kind": "any_of", "conditions": [deep, deep]} if len(json.dumps(deep)) < 20_000 else deep
    loop: dict[str, Any] = changed()
    loop["tracks"][0]["stages"][0]["requires"] = loop["tracks"]
    texts = {
        "empty": "",
        "not an object": "[]",
        "a number": "7",
        "null": "null",
        "trailing text": text + " x",
        "comment": text.replace("{", "{ // hi", 1),
        "single quotes": text.replace('"', "'"),
        "duplicate keys": text.replace('"task":', '"task": "libero_goal-1", "task":', 1),
        "duplicate nested keys": text.replace('"points":', '"points": 99.0, "points":', 1),
        "escaped duplicate": text.replace('"task":', '"t\\u0061sk": "libero_goal-1", "task":', 1),
        "NaN": text.replace('"success_points": 5.0', '"success_points": NaN'),
        "Infinity": text.replace('"success_points": 5.0', '"success_points": Infinity'),
        "minus infinity": text.replace('"success_points": 5.0', '"success_points": -1e999'),
        "1e400": text.replace('"success_points": 5.0', '"success_points": 1e400'),
        "5000 digits": text.replace('"success_points": 5.0', '"success_points": ' + "9" * 5_000),
        "deep brackets": "[" * 60_000,
        "deep objects": '{"a":' * 10_000 + "1" + "}" * 10_000,
        "deep in a field": text.replace('"guards": []', '"guards": ' + "[" * 1_000 + "]" * 1_000),
        "100k elements": text.replace('"guards": []', '"guards": [' + "1," * 100_000 + "1]"),
        "12k elements": text.replace('"guards": []', '"guards": [' + "1," * 12_000 + "1]"),
        "many keys": text[:-1] + "," + ",".join(f'"k{i}": 1' for i in range(5_000)) + "}",
        "100 MB": b"{" + b" " * 100_000_000 + b"}",
        "not utf-8": text.encode() + b"\xff",
        "utf-16": text.encode("utf-16"),
        "lone surrogate": text.replace("Put the", "\\ud800"),
    }
    others = {
        "nul in a name": name("a\x00b"),
        "homoglyph name": name("ketchu\u0440"),
        "full-width name": name("\uff4betchup"),
        "code in a name": name('a"]; import os #'),
        "newline in a name": name("a\nimport os"),
        "trailing newline name": name("ketchup\n"),
        "dunder name": name("__class__"),
        "long name": name("a" * 10_000),
        "number for name": name(7),
        "docstring break": changed(summary='"""\n    import os\n    """'),
        "backslash summary": changed(summary="a\\"),
        "newline summary": changed(summary="a\nimport os"),
        "huge summary": changed(summary="a" * 10_000),
        "template summary": changed(summary="{0.__class__}"),
        "extra field": changed(__class__="x"),
        "code field": changed(code="import os"),
        "ref": changed(**{"$ref": "file:///etc/passwd"}),
        "string number": changed(success_points="5.0"),
        "boolean number": changed(success_points=True),
        "negative": changed(success_points=-5.0),
        "huge": changed(success_points=1e30),
        "schema 2": changed(schema_version=2),
        "other task": changed(task="libero_goal-1"),
        "task as a path": changed(task="../../etc/passwd-1"),
        "missing task": changed(task="libero_object-77"),
        "no tracks": changed(tracks=[]),
        "100 tracks": changed(tracks=spec["tracks"] * 100),
        "same track twice": changed(tracks=spec["tracks"] * 2),
        "after itself": changed(tracks=[{**spec["tracks"][0], "after": ["ketchup"]}]),
        "1000 stages": changed(tracks=[{**spec["tracks"][0], "stages": spec["tracks"][0]["stages"] * 250}]),
        "1000 rungs": stage(ladder={**ladder, "rungs": [rung] * 1_000}),
        "deep any_of": stage(requires=[deep]),
        "any_of in any_of": stage(done=[{"kind": "any_of", "conditions": [{"kind": "any_of", "conditions": []}] * 2}]),
        "unknown kind": stage(done=[{"kind": "exec", "code": "1"}]),
        "kind is a list": stage(done=[{"kind": ["goal"], "index": 0}]),
        "expression threshold": stage(done=[{**spec["tracks"][0]["stages"][0]["done"][0], "value": "9**9**9"}]),
        "negative goal": changed(tracks=[{**spec["tracks"][0], "goal": [-1]}]),
        "goal 10**30": changed(tracks=[{**spec["tracks"][0], "goal": [10**30]}]),
        "goal 0.0": changed(tracks=[{**spec["tracks"][0], "goal": [0.0]}]),
        "hold forever": stage(hold_steps=10**9),
        "zero points": stage(points=0.0),
        "tiny points": stage(points=5e-324),
        "absurd offset": changed(key_poses=[{**spec["key_poses"][0], "offset": {"x": 1e9, "y": 0.0, "z": 0.0}}]),
        "reads everything": stage(ladder={**ladder, "variable": {"kind": "joint", "joint": "success"}}),
        "object as value": changed(guards=[object()]),
        "set as value": changed(guards={1, 2}),
        "bytes as value": changed(summary=b"abc"),
        "complex as value": changed(success_points=5j),
        "circular": loop,
        "a class": object,
        "none": None,
        "path: a folder": "/",
        "path: a device": "/dev/zero",
        "path: a missing path": "/nonexistent/spec.json",
        "path: nul path": "a\x00b",
        "shuffled stages": changed(tracks=[{**spec["tracks"][0], "stages": spec["tracks"][0]["stages"][::-1]}]),
        "negative zero": changed(key_poses=[{**spec["key_poses"][0], "offset": {"x": -0.0, "y": 0.0, "z": 0.0}}]),
    }
    # Bytes are always a document; a string could be a path.
    return {key: value.encode() if isinstance(value, str) else value for key, value in texts.items()} | others
