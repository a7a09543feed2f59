"""
The names a reward may read, in one table.

The environment's facts accessor (``LiberoEnv.facts()``) fills these keys every step with plain floats, bools and tuples;
reward programs, experts, key poses and the verifier read them. Nothing else is visible to a reward.
Positions are in metres in the world frame, quaternions are (x, y, z, w), joints are in metres (slide) or radians (hinge).
"""

from dataclasses import dataclass
from typing import Literal

ValueType = Literal["bool", "scalar", "vec3", "quat"]
StateValue = bool | float | tuple[float, ...]
State = dict[str, StateValue]
"""What the facts accessor returns: one flat dictionary of immutable values."""


@dataclass(frozen=True)
class Term:
    """
    One row of the vocabulary.

    :param type: Type of the value; ``vec3`` and ``quat`` are tuples of 3 and 4 floats.
    :param unit: Physical unit, empty where there is none.
    :param doc: Meaning, in one sentence.
    """

    type: ValueType
    unit: str
    doc: str


VOCABULARY: dict[str, Term] = {
    # robot
    "eef_pos": Term("vec3", "m", "Position between the fingertips (LIBERO's robot0_eef_pos)."),
    "eef_quat": Term("quat", "", "Orientation of the gripper (LIBERO's robot0_eef_quat)."),
    "gripper_opening": Term("scalar", "m", "Distance between the fingers: about 0.077 open, 0 closed on nothing."),
    # movable objects, {object} is an instance name of the BDDL file such as ketchup_1
    "{object}_pos": Term("vec3", "m", "Body origin; at the base for bowls, plates, mugs and bottles, see the task facts."),
    "{object}_quat": Term("quat", "", "Body orientation."),
    "{object}_left_pad": Term("bool", "", "The left finger pad touches the object."),
    "{object}_right_pad": Term("bool", "", "The right finger pad touches the object."),
    "{object}_grasped": Term("bool", "", "Both finger pads touch the object (robosuite's grasp check)."),
    "{object}_touched": Term("bool", "", "Any geom of the gripper touches the object."),
    # fixtures, {fixture} such as wooden_cabinet_1; sites, {site} such as basket_1_contain_region
    "{fixture}_pos": Term("vec3", "m", "Body origin of a fixture (cabinet, stove, microwave, rack)."),
    "{fixture}_quat": Term("quat", "", "Orientation of a fixture."),
    "{site}_pos": Term("vec3", "m", "Centre of a region: inside a container, a drawer, on a stove, a zone of the table."),
    "{site}_quat": Term("quat", "", "Orientation of a region."),
    "{joint}_qpos": Term("scalar", "m or rad", "Position of a drawer, door or knob joint."),
    "{handle}_pos": Term("vec3", "m", "Centre of what is pulled, pushed or turned: a drawer's or door's handle, a knob."),
    "{handle}_touched": Term("bool", "", "Any geom of the gripper touches the handle or knob."),
    # the goal, by LIBERO's own predicates
    "goal_{k}": Term("bool", "", "The k-th atom of the goal, in the BDDL file's order, holds now (k from 0)."),
    "success": Term("bool", "", "All atoms of the goal hold now."),
}
"""State keys; ``{...}`` stands for a name of the task, listed in its task facts."""

INFO_VOCABULARY: dict[str, Term] = {
    "step": Term("scalar", "control steps", "Steps since reset, 20 a second."),
    "start_{object}_pos": Term(
        "vec3", "m", "Where the object was at reset; kept by the program's memory, not by the environment."
    ),
    "memory_{name}": Term("scalar", "", "What a program written in Python last assigned to memory_{name}, 0 at first."),
}
"""Keys of the ``info`` argument of a reward program. The environment gives ``step``, the program's memory the rest."""
