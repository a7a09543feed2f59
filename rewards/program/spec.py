"""
The declarative reward: what an LLM writes, what ships, what is verified.

A reward is a few *tracks* (sub-goals, in any order unless ``after`` says otherwise), each a sequence of *stages*. A stage pays
part of its points up a ladder of thresholds (f1 of the paper's equation 1), a little for nearness to a key pose of successful
demonstrations (f2), and all of them when it is done. There are no expressions, strings to evaluate or recursion:
every field is a number, a name of the task or one of a few kinds.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from sb3_tgrpo.rewards.facts.errors import Problem, RewardError, shorten

try:
    from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
except ImportError as error:  # pragma: no cover - exercised in a sub-process
    raise ImportError("Reward specs need pydantic: pip install 'sb3-tgrpo[rewards]'") from error

MAX_BYTES = 65_536
MAX_DEPTH = 16
DEBOUNCE_STEPS = 3
"""Steps (0.15 s) that a condition must fail before a stage is lost, and that a grasp must last before it counts."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
# What a reward's text makes variables of: `memory_<name>_held` must be a name too, and there `__` is refused.
Label = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$", max_length=52)]
Text = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9 ,.;:()+=<>/_-]{1,300}$")]
Metres = Annotated[float, Field(ge=-2.0, le=2.0)]
Threshold = Annotated[float, Field(ge=-4.0, le=4.0)]
Points = Annotated[float, Field(gt=0.0, le=100.0)]
Index = Annotated[int, Field(ge=0, le=7)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class Offset(_Model):
    """A displacement in metres."""

    x: Metres
    y: Metres
    z: Metres


class KeyPose(_Model):
    """
    A gripper position of successful demonstrations, in the frame of the thing it belongs to.

    ``axes`` says whether ``offset`` is along the world's axes or turns with the frame's own orientation.
    """

    name: Label
    frame: Name
    axes: Literal["world", "frame"]
    offset: Offset


class Distance(_Model):
    """Distance in space, horizontal or vertical, between points: ``eef``, object, site, fixture, handle or key pose."""

    kind: Literal["distance"]
    a: Name
    b: Name
    metric: Literal["xyz", "xy", "z"]


class Height(_Model):
    """Signed height of ``a`` over ``b``: positive when ``a`` is above."""

    kind: Literal["height"]
    a: Name
    b: Name


class Rise(_Model):
    """Height of an object's origin over where it was at reset."""

    kind: Literal["rise"]
    object: Name


class Joint(_Model):
    """Position of a drawer, door or knob."""

    kind: Literal["joint"]
    joint: Name


class Opening(_Model):
    """Distance between the fingers."""

    kind: Literal["opening"]


class Outside(_Model):
    """
    Metres that a point is outside a site's box on the worst of the axes, negative inside: LIBERO's own ``In`` test, with
    ``xy`` seen from above.
    """

    kind: Literal["outside"]
    point: Name
    site: Name
    axes: Literal["xy", "xyz"]


class Tilt(_Model):
    """Angle in radians between an object's or fixture's z axis and the vertical."""

    kind: Literal["tilt"]
    entity: Name


Variable = Annotated[Distance | Height | Rise | Joint | Opening | Outside | Tilt, Field(discriminator="kind")]


class Compare(_Model):
    """A variable is strictly below or above a value."""

    kind: Literal["compare"]
    variable: Variable
    op: Literal["below", "above"]
    value: Threshold


class Grasped(_Model):
    """Both finger pads touch the object."""

    kind: Literal["grasped"]
    object: Name


class Released(_Model):
    """Neither finger pad touches the object."""

    kind: Literal["released"]
    object: Name


class Touched(_Model):
    """The gripper touches an object or handle."""

    kind: Literal["touched"]
    name: Name


class Goal(_Model):
    """The k-th atom of the goal holds."""

    kind: Literal["goal"]
    index: Index


Simple = Annotated[Compare | Grasped | Released | Touched | Goal, Field(discriminator="kind")]


class AnyOf(_Model):
    """At least one of the conditions holds."""

    kind: Literal["any_of"]
    conditions: Annotated[tuple[Simple, ...], Field(min_length=2, max_length=4)]


Condition = Annotated[Compare | Grasped | Released | Touched | Goal | AnyOf, Field(discriminator="kind")]


class Rung(_Model):
    """``value`` points once the ladder's variable is past ``threshold``."""

    threshold: Threshold
    value: Points


class Ladder(_Model):
    """Points for partial progress: those of the last rung that the variable is past. Rungs go from easy to hard."""

    variable: Variable
    op: Literal["below", "above"]
    rungs: Annotated[tuple[Rung, ...], Field(min_length=1, max_length=6)]


class PoseShaping(_Model):
    """``weight`` points at the key pose, falling linearly to none at ``reach`` metres from it (f2 of equation 1)."""

    key_pose: Label
    reach: Annotated[float, Field(gt=0.0, le=2.0)]
    weight: Points


class Stage(_Model):
    """
    One step of a sub-goal.

    ``requires`` must keep holding or the track falls back; ``done`` must hold for ``hold_steps`` steps in a row to go on.
    """

    name: Name
    points: Points
    requires: Annotated[tuple[Condition, ...], Field(max_length=4)]
    ladder: Ladder | None
    pose: PoseShaping | None
    done: Annotated[tuple[Condition, ...], Field(min_length=1, max_length=4)]
    hold_steps: Annotated[int, Field(ge=1, le=20)]

    @property
    def contacts(self) -> list[str]:
        """Objects and handles whose grasp or touch is part of being done."""
        return [c.object if isinstance(c, Grasped) else c.name for c in self.done if isinstance(c, Grasped | Touched)]


class Track(_Model):
    """A sub-goal: it is complete while its goal atoms hold, and pays nothing before the tracks in ``after`` are complete."""

    name: Label
    goal: Annotated[tuple[Index, ...], Field(min_length=1, max_length=4)]
    after: Annotated[tuple[Label, ...], Field(max_length=3)]
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=12)]


class Guard(_Model):
    """Something that must stay as it is: ``points`` are taken off the level while ``keep`` does not hold."""

    name: Name
    keep: Condition
    points: Points


class RewardSpec(_Model):
    """
    A multi-stage reward for one task.

    Build it with :meth:`parse`; the constructor checks types and ranges but not the names, which need the task's facts.
    """

    schema_version: Literal[1]
    task: Annotated[str, StringConstraints(pattern=r"^libero_[a-z0-9]{1,20}-[0-9]{1,2}$")]
    summary: Text
    key_poses: Annotated[tuple[KeyPose, ...], Field(max_length=12)]
    tracks: Annotated[tuple[Track, ...], Field(min_length=1, max_length=4)]
    guards: Annotated[tuple[Guard, ...], Field(max_length=4)]
    success_points: Points

    @classmethod
    def parse(cls, source: "RewardSpec | Mapping[str, Any] | str | bytes | os.PathLike[str]") -> "RewardSpec":
        """
        Read a spec, checking size, syntax, types and ranges (not yet names, see
        :func:`sb3_tgrpo.rewards.program.static_checks.check_spec`).

        :param source: Mapping, JSON text (bytes, or a string that begins with ``{``), or path.
        :raises RewardError: If anything is wrong, naming each field, its value and the valid choices.
        """
        if isinstance(source, RewardSpec):
            return source
        text = _read(source)
        _load_json(text)
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise RewardError([_problem(item) for item in _first_causes(error.errors(include_url=False))[:20]]) from None

    def to_json(self) -> str:
        """Readable JSON."""
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON: what a report or a run folder quotes."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def max_level(self) -> float:
        """The level when every track is complete and no guard is broken."""
        return sum(stage.points for track in self.tracks for stage in track.stages)

    @property
    def n_stages(self) -> int:
        """Stages of all tracks."""
        return sum(len(track.stages) for track in self.tracks)


def _read(source: Mapping[str, Any] | str | bytes | os.PathLike[str]) -> str:
    if isinstance(source, Mapping):
        try:
            text = json.dumps(source, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise RewardError(f"the spec is not plain JSON: {error}") from None
    elif isinstance(source, bytes):
        text = _decode(source)
    elif isinstance(source, str) and source.lstrip()[:1] in ("{", "["):
        text = source
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        try:
            with path.open("rb") as file:
                text = _decode(file.read(MAX_BYTES + 1))
        except (OSError, ValueError) as error:
            raise RewardError(f"no reward spec at {shorten(os.fspath(source))}: {error}") from None
    else:
        raise RewardError(f"a spec is a mapping, a JSON text or a path, got {type(source).__name__}")
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise RewardError(f"the spec is larger than {MAX_BYTES} bytes")
    return text


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RewardError(f"the spec is not UTF-8: {error.reason} at byte {error.start}") from None


def _load_json(text: str) -> None:
    """Refuse what a reviewer could misread (duplicate keys) and what JSON does not have (NaN, Infinity)."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        twice = sorted({key for key in keys if keys.count(key) > 1}) if len(keys) <= 64 else ["(more than 64 keys)"]
        if twice:
            raise RewardError(f"duplicate key {shorten(twice[0])}")
        return dict(items)

    def constant(name: str) -> float:
        raise RewardError(f"{name} is not a number of JSON")

    depth = deepest = 0
    for character in text:
        if character in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "}]":
            depth -= 1
    if deepest > MAX_DEPTH:
        raise RewardError(f"the spec is nested {deepest} deep")
    try:
        json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except RewardError:
        raise
    except (ValueError, RecursionError) as error:
        raise RewardError(f"the spec is not valid JSON: {error}") from None


def _first_causes(items: Sequence[Any]) -> list[Any]:
    """Without the lists that are "too short" only because an element of theirs is wrong."""
    places = [item["loc"] for item in items]

    def follows(item: Any) -> bool:
        loc = item["loc"]
        return item["type"] == "too_short" and any(len(p) > len(loc) and p[: len(loc)] == loc for p in places)

    return [item for item in items if not follows(item)]


def _problem(item: Mapping[str, Any]) -> Problem:
    # Tags of discriminated unions appear as path entries; they are not fields.
    tags = {"distance", "height", "rise", "joint", "opening", "outside", "tilt"}
    tags |= {"compare", "grasped", "released", "touched", "goal", "any_of"}
    path = ""
    previous: Any = None
    for part in item["loc"]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif not (part in tags and (isinstance(previous, int) or previous in ("variable", "keep"))):
            path += f".{part}" if path else str(part)
        previous = part
    context = item.get("ctx") or {}
    expected = context.get("expected_tags") or context.get("expected") or ""
    choices = tuple(part.strip(" '") for part in str(expected).replace(" or ", ",").split(",") if part.strip(" '"))
    return Problem(path or "(spec)", shorten(item.get("input")), str(item["msg"]), choices)
