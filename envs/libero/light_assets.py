"""Light assets: LIBERO's tasks with the same physics and a fraction of the drawing, and nothing to download.

Half of what LIBERO draws is the objects' scanned meshes, half the robot's. Light assets replace the former by primitives
in a folder of the same layout (:func:`light_assets_folder`) and the latter in the finished model (:func:`lighten_model`).
Joints, sites, collision geoms, masses and actuators stay LIBERO's.
"""

import hashlib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from sb3_tgrpo.envs.libero.installation import import_libero, writable_cache_folder
from sb3_tgrpo.envs.libero.light_mjcf import OBJECT_KINDS, asset_files, expand, load_table, object_file, primitive
from sb3_tgrpo.files import atomic_write
from sb3_tgrpo.version import __version__

# MuJoCo's defaults (28, 16, 4) draw three to four times the faces; these still look round and evenly lit at 256 pixels
_QUALITY = {"numslices": "16", "numstacks": "8", "numquads": "2"}
# What LIBERO's problem classes load unless told otherwise
_SCENES = {
    "libero_coffee_table_manipulation": "libero_coffee_table_base_style",
    "libero_floor_manipulation": "libero_floor_base_style",
    "libero_kitchen_tabletop_manipulation": "libero_kitchen_tabletop_base_style",
    "libero_living_room_tabletop_manipulation": "libero_living_room_tabletop_base_style",
    "libero_study_tabletop_manipulation": "libero_study_base_style",
    "libero_tabletop_manipulation": "libero_tabletop_base_style",
}
_HIDDEN = {"type": "sphere", "size": 0.001, "rgba": [0, 0, 0, 0]}


def light_assets_folder() -> Path:
    """
    Generate the light assets in the per-user cache, if they are not there yet.

    The folder's name holds the package version and a hash of its content. Files appear whole, so any number of processes
    may ask at once; one that was damaged or deleted is written anew.

    :return: Folder in LIBERO's asset layout.
    """
    content = asset_files()
    digest = hashlib.sha256()
    for name in sorted(content):
        digest.update(name.encode() + b"\0" + content[name] + b"\0")
    folder = writable_cache_folder() / f"light-assets-{__version__}-{digest.hexdigest()[:16]}"
    for name, data in content.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != data:
            atomic_write(path, data)
    return folder


def lighten_model(xml: str) -> str:
    """
    Replace the robot's visual meshes by primitives.

    For the final MJCF of a task on light assets, as robosuite builds it (``env.model.get_xml()``). Bodies, joints, sites,
    inertias, actuators and collision geoms are left as they are. Visual geoms keep their names, which robosuite looks up:
    the first ones of a body become its primitives, the rest are hidden. Meshes, materials and textures that nothing uses any
    more are dropped, which also makes compiling faster. Round primitives are drawn with fewer facets than MuJoCo's default.

    :raises ValueError: If a visual mesh belongs to a body that ``data/light_assets/robot.toml`` has no primitives for.
    """
    root = ET.fromstring(xml)
    worldbody = root.find("worldbody")
    if worldbody is None:
        raise ValueError("lighten_model: the MJCF has no <worldbody>.")
    for body in worldbody.iter("body"):
        _replace_visual_meshes(body)
    _drop_unused_assets(root)
    _child(_child(root, "visual"), "quality").attrib.update(_QUALITY)
    return ET.tostring(root, encoding="unicode")


def _replace_visual_meshes(body: ET.Element) -> None:
    meshes = [geom for geom in body.findall("geom") if geom.get("type") == "mesh" and geom.get("group") == "1"]
    if not meshes:
        return
    name = body.get("name", "")
    part = name.partition("_")[2]  # robosuite's prefix: robot0_, gripper0_, mount0_
    row = load_table("robot").get(part)
    if row is None:
        known = ", ".join(load_table("robot"))
        raise ValueError(
            f"Light assets have no primitives for the visual meshes of body {name!r} (known robot parts: {known}). "
            'Use assets="full", or add a row to envs/data/light_assets.'
        )
    visuals = list(expand(row["visual"]))
    for index, visual in enumerate(visuals):
        if index < len(meshes):
            geom = primitive(visual, name=meshes[index].get("name"))
            meshes[index].attrib.clear()
            meshes[index].attrib.update(geom.attrib)
        else:
            position = list(body).index(meshes[-1]) + 1
            body.insert(position, primitive(visual, name=f"{name}_light{index}"))
    for geom in meshes[len(visuals) :]:
        hidden = primitive(_HIDDEN, name=geom.get("name"))
        geom.attrib.clear()
        geom.attrib.update(hidden.attrib)


def _child(parent: ET.Element, tag: str) -> ET.Element:
    found = parent.find(tag)
    return ET.SubElement(parent, tag) if found is None else found


def _drop_unused_assets(root: ET.Element) -> None:
    asset = root.find("asset")
    if asset is None:
        return
    for tag, users in (("mesh", ["geom"]), ("material", ["geom", "site", "tendon"]), ("texture", ["material"])):
        used = {element.get(tag) for user in users for element in root.iter(user)}
        for element in asset.findall(tag):
            if element.get("name") not in used and element.get("type") != "skybox":
                asset.remove(element)


def require_light(bddl_file: str | os.PathLike[str]) -> None:
    """Check that light assets cover a task; ValueError if something is not in the tables, with its name and the remedy."""
    import_libero()
    from libero.libero.envs.bddl_utils import robosuite_parse_problem

    problem = robosuite_parse_problem(os.fspath(bddl_file))
    available = asset_files()
    categories = sorted({*problem["objects"], *problem["fixtures"]})
    missing = [name for name in categories if not available.keys() >= set(_object_file(name))]
    scene = _SCENES.get(problem["problem_name"].lower())
    if scene and f"scenes/{scene}.xml" not in available:
        missing.append(f"the scene {scene}")
    if missing:
        raise ValueError(
            f'assets="light" does not cover {os.path.basename(bddl_file)}: no light version of {", ".join(missing)}. '
            'Use assets="full" (LIBERO\'s own, downloaded on first use), or add rows to the tables in '
            "envs/data/light_assets (see docs/light_assets.md)."
        )


def _object_file(category: str) -> Iterator[str]:
    """The MJCF file that LIBERO's class for a category loads; nothing for one that loads none (a table, a zone)."""
    import_libero()
    from libero.libero.envs.base_object import OBJECTS_DICT
    from libero.libero.envs.objects import articulated_objects, google_scanned_objects, hope_objects, turbosquid_objects

    cls = OBJECTS_DICT.get(category.lower())
    if cls is None:
        return
    name = inspect.signature(cls.__init__).parameters["obj_name"].default
    modules = (hope_objects, google_scanned_objects, turbosquid_objects, articulated_objects)
    for kind, module in zip(OBJECT_KINDS, modules, strict=True):
        if cls.__module__ == module.__name__:
            yield object_file(kind, name)
