"""
Print the table row of a LIBERO object for the light assets, from the object's own files.

``python scripts/light_import.py turbosquid_objects/wine_bottle`` reads full assets and prints TOML: the figures of
the physics, ready to use, and as a start for the looks the collision geoms in the mean colour of the object's texture.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

from sb3_tgrpo.envs.libero.assets import resolve_assets
from sb3_tgrpo.envs.libero.light_mjcf import load_table, object_file

_COMMON = {
    "type": "box",
    "density": "100",
    "friction": "0.95 0.3 0.1",
    "solref": "0.001 1",
    "solimp": "0.998 0.998 0.001",
}
_SHAPE = ("type", "pos", "quat", "euler", "fromto", "size")
_BOUNDS = {"bottom": "bottom_site", "top": "top_site", "radius": "horizontal_radius_site"}


def _figure(text: str) -> str:
    value = float(text)
    return str(int(value)) if value.is_integer() and abs(value) < 1e6 else repr(value)


def _toml(key: str, text: str) -> str:
    words = text.split()
    try:
        figures = [_figure(word) for word in words]
    except ValueError:
        return f'"{text}"' if key != "limited" and text not in ("true", "false") else text
    return figures[0] if len(figures) == 1 and key != "size" else f"[{', '.join(figures)}]"


def _inline(attributes: Mapping[str, str]) -> str:
    return "{ " + ", ".join(f"{key} = {_toml(key, text)}" for key, text in attributes.items()) + " }"


def _is_drawn_only(geom: ET.Element) -> bool:
    return geom.get("contype") == "0" and geom.get("conaffinity") == "0"


class _Colours:
    """The colour of a geom: its own, or its material's times the mean of the texture."""

    def __init__(self, root: ET.Element) -> None:
        self._materials = {element.get("name"): element for element in root.findall("./asset/material")}
        self._files = {element.get("name"): element.get("file") for element in root.findall("./asset/texture")}

    def of(self, geom: ET.Element) -> str:
        from PIL import Image

        material = self._materials.get(geom.get("material"))
        rgba = geom.get("rgba") or (material.get("rgba") if material is not None else None) or "1 1 1 1"
        colour = np.array([float(word) for word in rgba.split()[:3]])
        file = self._files.get(material.get("texture")) if material is not None else None
        if file:
            colour = colour * np.asarray(Image.open(file).convert("RGB").resize((16, 16))).mean((0, 1)) / 255
        return "".join(f"{round(255 * float(c)):02x}" for c in colour.clip(0, 1))


class _Row:
    """The TOML text of one object, body by body."""

    def __init__(self, name: str, root: ET.Element) -> None:
        outer = root.find("./worldbody/body")
        body = root.find("./worldbody/body/body[@name='object']")
        if outer is None or body is None:
            raise ValueError(f"{name}: the file has no body named 'object'.")
        self._colours = _Colours(root)
        numbered = ((geom, geom.get("name") or f"g{index}") for index, geom in enumerate(body.iter("geom")))
        self._names: dict[ET.Element, str] = dict(numbered)  # robosuite's numbers
        self._next = 1  # the number the table gives to the next nameless collision geom
        self.lines = [f"[{name}]", *self._attributes(body, ("pos", "quat"))]
        bounds = {key: site.get("pos", "0 0 0") for key, which in _BOUNDS.items() for site in outer.findall("site")
                  if site.get("name") == which}  # fmt: skip
        self._body(body, name, [f"bounds = {_inline(bounds)}"])

    def _attributes(self, body: ET.Element, keys: Sequence[str]) -> list[str]:
        return [f"{key} = {_toml(key, text)}" for key in keys if (text := body.get(key)) is not None]

    def _list(self, key: str, rows: Sequence[str]) -> Iterator[str]:
        if rows:
            yield from (f"{key} = [", *(f"  {row}," for row in rows), "]")

    def _body(self, body: ET.Element, path: str, extra: Sequence[str] = ()) -> None:
        geoms = body.findall("geom")
        felt = [geom for geom in geoms if not _is_drawn_only(geom)]
        meshes = [geom for geom in felt if geom.get("type") == "mesh"]
        if meshes:
            raise ValueError(f"{path}: {len(meshes)} collision geom(s) are meshes, which light assets don't cover.")
        self.lines += self._list("visual", self._visuals(geoms, felt))
        self.lines += extra
        inertial = body.find("inertial")
        if inertial is not None:
            self.lines.append(f"inertial = {_inline(inertial.attrib)}")
        self.lines += self._list("joints", [_inline(joint.attrib) for joint in body.findall("joint")])
        self.lines += self._list("sites", [_inline(site.attrib) for site in body.findall("site")])
        # the table's defaults fit where all four contact figures are given and the geom is felt, not seen
        if any(geom.get("group") != "0" or not {*_COMMON}.issubset(geom.attrib) for geom in felt):
            self.lines += self._list("geoms", [self._verbatim(geom) for geom in felt])
        else:
            self.lines += self._list("collision", [self._collision(geom) for geom in felt])
        for inner in body.findall("body"):
            self.lines += ["", f"[[{path}.bodies]]", *self._attributes(inner, ("name", "pos", "quat", "euler"))]
            self._body(inner, f"{path}.bodies")

    def _visuals(self, geoms: Sequence[ET.Element], felt: Sequence[ET.Element]) -> list[str]:
        drawn = [geom for geom in geoms if _is_drawn_only(geom)]
        rows = [self._shape(geom, self._colours.of(geom)) for geom in drawn if geom.get("type") != "mesh"]
        meshes = [geom for geom in drawn if geom.get("type") == "mesh"]
        if meshes:
            colour = self._colours.of(meshes[0])
            rows += [self._shape(geom, colour) for geom in felt if geom.get("group") == "0"]
        return list(dict.fromkeys(rows))

    def _shape(self, geom: ET.Element, colour: str) -> str:
        shape = {key: geom.attrib[key] for key in _SHAPE if key in geom.attrib}
        return _inline(shape)[:-2] + f', rgba = "{colour}" }}'

    def _collision(self, geom: ET.Element) -> str:
        skipped = ("rgba", "group", "material")
        kept = {key: text for key, text in geom.attrib.items() if key not in skipped and _COMMON.get(key) != text}
        if self._names[geom] == f"g{self._next}":
            self._next += 1
        else:
            kept = {"name": self._names[geom], **{key: text for key, text in kept.items() if key != "name"}}
        return _inline(kept)

    def _verbatim(self, geom: ET.Element) -> str:
        kept = {"name": self._names[geom], **{k: t for k, t in geom.attrib.items() if k not in ("material", "name", "rgba")}}
        return _inline(kept)[:-2] + (f', rgba = "{self._colours.of(geom)}" }}' if geom.get("group") == "1" else " }")


def import_row(kind: str, name: str) -> str:
    """
    :param kind: Folder of the assets, e.g. ``"turbosquid_objects"``.
    :param name: The object's file name without ``.xml``.
    :return: A row for ``data/light_assets/<kind>.toml``.
    :raises FileNotFoundError: Without full assets, or if they have no such object.
    :raises ValueError: If the object can't be expressed: a collision mesh, or a body with unusual contact figures.
    """
    from robosuite.models.base import MujocoXML

    file = resolve_assets("full").path / object_file(kind, name)
    root = MujocoXML(str(file)).root  # with its default classes written out and absolute paths
    return "\n".join(_Row(name, root).lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", nargs="+", metavar="KIND/NAME", help="e.g. turbosquid_objects/wine_bottle")
    options: Any = parser.parse_args(arguments)
    for item in options.objects:
        kind, _, name = item.partition("/")
        if name in load_table(kind):
            print(f"# {name} is in the table of {kind} already")
        print(import_row(kind, name))


if __name__ == "__main__":
    main()
