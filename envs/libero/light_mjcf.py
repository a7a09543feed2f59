"""Light assets as MJCF: from the tables in ``data/light_assets`` to files in LIBERO's asset layout.

A table row gives an object's physics as figures and its looks as primitives; see ``docs/light_assets.md``.
"""

import base64
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from itertools import count
from typing import Any
from xml.etree import ElementTree as ET

Row = Mapping[str, Any]

OBJECT_KINDS = ("stable_hope_objects", "stable_scanned_objects", "turbosquid_objects", "articulated_objects")

_VISUAL = {"group": 1, "contype": 0, "conaffinity": 0}
_COLLISION = {"group": 0}
_BOUNDS = {"bottom": "bottom_site", "top": "top_site", "radius": "horizontal_radius_site"}
_BODY_LISTS = ("joints", "geoms", "visual", "collision", "sites", "bodies", "lights", "cameras")
_BODY_ATTRIBUTES = ("name", "pos", "quat", "euler")
# A PNG of one pixel, (128, 128, 128): the textures that a scene's file must name.
_GREY_PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNoaGgAAAMEAYFL09IQAAAAAElFTkSuQmCC")


@cache
def load_table(name: str) -> dict[str, Row]:
    """Rows by name, ``defaults`` included, of ``data/light_assets/<name>.toml``; empty if there is no such table."""
    path = files("sb3_tgrpo.envs") / "data" / "light_assets" / f"{name}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def object_file(kind: str, name: str) -> str:
    """Path at which LIBERO's class looks for an object of one of :data:`OBJECT_KINDS`, relative to the assets folder."""
    return f"{kind}/{name}.xml" if kind == "articulated_objects" else f"{kind}/{name}/{name}.xml"


@cache
def asset_files() -> Mapping[str, bytes]:
    """Every file of the light assets folder: path in LIBERO's layout -> content."""
    content: dict[str, bytes] = {}
    for kind in OBJECT_KINDS:
        table = load_table(kind)
        defaults = table.get("defaults", {})
        for name, row in table.items():
            if name != "defaults":
                content[object_file(kind, name)] = _to_bytes(object_mjcf(name, row, defaults))
    scenes = load_table("scenes")
    for name in scenes:
        if name == "defaults":
            continue
        row = _inherited(scenes, name)
        content[f"scenes/{name}.xml"] = _to_bytes(_scene(name, row, scenes["defaults"]))
        for file in row.get("textures", {}).values():
            content[f"textures/{file}"] = _GREY_PIXEL
    return content


def _inherited(table: Mapping[str, Row], name: str) -> Row:
    row = table[name]
    return {**_inherited(table, row["like"]), **row} if "like" in row else row


def primitive(row: Row, **extra: Any) -> ET.Element:
    """
    A geom that is drawn, has no mass and touches nothing.

    :param row: One visual of a table: MJCF geom attributes, ``rgba`` as ``"rrggbb"`` or four numbers.
    :param extra: Attributes that the row may overwrite.
    """
    return _element("geom", {**_VISUAL, **extra, **row})


def expand(visuals: Iterable[Row]) -> Iterator[Row]:
    """
    Visuals with each ring written out: ``ring = 12`` repeats a primitive 12 times around the vertical axis through
    ``about = [x, y]`` (the body's origin, if left out).
    """
    for row in visuals:
        if "ring" not in row:
            yield row
            continue
        base = {key: value for key, value in row.items() if key not in ("ring", "about")}
        x0, y0 = row.get("about", (0, 0))
        x, y, z = row["pos"]
        for index in range(row["ring"]):
            angle = 2 * math.pi * index / row["ring"]
            cos, sin = math.cos(angle), math.sin(angle)
            pos = (x0 + cos * (x - x0) - sin * (y - y0), y0 + sin * (x - x0) + cos * (y - y0), z)
            yield {**base, "pos": _rounded(pos), "quat": _rounded(_turned(angle, row.get("quat", (1, 0, 0, 0))))}


def _turned(angle: float, quat: Sequence[float]) -> tuple[float, ...]:
    """A quaternion turned about the vertical axis."""
    c, s = math.cos(angle / 2), math.sin(angle / 2)
    w, x, y, z = quat
    return (c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w)


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 6) + 0.0 for value in values]  # + 0.0: no -0.0


def _element(tag: str, row: Row) -> ET.Element:
    return ET.Element(tag, {key: _text(key, value) for key, value in row.items()})


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _colour(value) if key == "rgba" else value
    if isinstance(value, Iterable):
        return " ".join(_text(key, item) for item in value)
    return repr(value)


def _colour(code: str) -> str:
    red, green, blue = (int(code[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return f"{red:.4f} {green:.4f} {blue:.4f} 1"


def _fill_body(name: str, body: ET.Element, row: Row, defaults: Row, visual: Iterator[str], felt: Iterator[str]) -> None:
    """Add what a row lists to a body element; ``visual`` and ``felt`` supply names for geoms that have none."""
    unknown = set(row) - {*_BODY_LISTS, *_BODY_ATTRIBUTES, "inertial", "bounds", "textures", "materials", "like"}
    if unknown:
        raise ValueError(f"Light assets: unknown key(s) {sorted(unknown)} in the row of {name}.")
    if "inertial" in row:
        body.append(_element("inertial", row["inertial"]))
    for tag in ("joint", "light", "camera"):
        body.extend(_element(tag, attributes) for attributes in row.get(f"{tag}s", ()))
    for shape in expand(row.get("visual", ())):
        body.append(primitive(shape, name=next(visual)))
    for geom in row.get("geoms", ()):
        body.append(_element("geom", geom))
    for geom in row.get("collision", ()):
        full = {**_COLLISION, **defaults.get("collision", {}), **geom}
        if "name" not in full and (number := next(felt, None)):
            full["name"] = number
        body.append(_element("geom", full))
    for site in row.get("sites", ()):
        body.append(_element("site", {**defaults.get("site", {}), **site}))
    for inner in row.get("bodies", ()):
        child = _element("body", {key: inner[key] for key in _BODY_ATTRIBUTES if key in inner})
        _fill_body(name, child, inner, defaults, visual, felt)
        body.append(child)


def object_mjcf(name: str, row: Row, defaults: Row) -> ET.Element:
    """An object's MJCF document, in the form that LIBERO's object classes expect; ValueError if its row has an unknown key."""
    root = ET.Element("mujoco", {"model": name})
    outer = ET.SubElement(ET.SubElement(root, "worldbody"), "body")
    body = ET.SubElement(outer, "body", {"name": "object"})
    body.attrib.update(_element("body", {key: row[key] for key in _BODY_ATTRIBUTES if key in row}).attrib)
    # robosuite numbers an object's nameless geoms in file order; LIBERO's files start with the visual mesh, number 0
    _fill_body(name, body, row, defaults, (f"v{index}" for index in count()), (f"g{index}" for index in count(1)))
    for key, site in _BOUNDS.items():
        outer.append(_element("site", {"name": site, "pos": row["bounds"][key], "size": [0.005], "rgba": [0, 0, 0, 0]}))
    return root


def _scene(name: str, row: Row, defaults: Row) -> ET.Element:
    root = ET.Element("mujoco", {"model": name})
    asset = ET.SubElement(root, "asset")
    sky = {"type": "skybox", "builtin": "gradient", "rgb1": "0.9 0.9 1", "rgb2": "0.2 0.3 0.4", "width": 256, "height": 256}
    asset.append(_element("texture", sky))
    for texture, file in row["textures"].items():
        asset.append(_element("texture", {"name": texture, "type": "2d", "file": f"../textures/{file}"}))
    for material in row["materials"]:
        attributes = {key: value for key, value in material.items() if key != "flat"}
        if "flat" in material:
            attributes["texture"] = f"{material['name']}_flat"
            colour = _colour(material["flat"]).rpartition(" ")[0]
            flat = {"name": attributes["texture"], "type": "2d", "builtin": "flat", "rgb1": colour, "width": 1, "height": 1}
            asset.append(_element("texture", flat))
        asset.append(_element("material", attributes))
    _fill_body(name, ET.SubElement(root, "worldbody"), row, defaults, (f"v{index}" for index in count()), iter(()))
    return root


def _to_bytes(root: ET.Element) -> bytes:
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8") + b"\n"
