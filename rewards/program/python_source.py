"""From a checked ``compute_reward(state, info)`` to a function, with a second, independent look at its bytecode."""

import dis
import math
import types
from collections.abc import Mapping
from typing import Any

from sb3_tgrpo.rewards.facts.errors import RewardError
from sb3_tgrpo.rewards.facts.helpers import FUNCTIONS
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts, Vec3
from sb3_tgrpo.rewards.program.allowlist import FILENAME, check_source
from sb3_tgrpo.rewards.program.level import Compiled, Info, State, StateLevel

# No operation of these kinds can come from the allowed syntax: attributes, imports, stores elsewhere than in locals,
# iteration, closures, handlers, backward jumps, containers other than the tuple that is returned.
_FORBIDDEN = tuple(
    """
    ATTR METHOD IMPORT STORE_GLOBAL STORE_NAME STORE_SUBSCR DELETE ITER YIELD SEND MAKE_FUNCTION MAKE_CELL DEREF CLOSURE
    FREE_VARS RAISE EXC SETUP WITH BACKWARD JUMP_ABSOLUTE BUILD_LIST BUILD_MAP BUILD_SET BUILD_STRING BUILD_SLICE FORMAT UNPACK
    LIST_EXTEND APPEND MATCH AWAIT GENERATOR CALL_FUNCTION_EX KW_NAMES CALL_KW LOAD_BUILD_CLASS LOAD_NAME PRINT
    CONTAINS_OP IS_OP
    """.split()
)


def compile_python(source: str, facts: TaskFacts) -> Compiled:
    """Check and compile the source of one ``def compute_reward(state, info)``; RewardError as in :func:`check_source`."""
    checked = check_source(source, facts)
    module = compile(checked.tree, FILENAME, "exec", dont_inherit=True, optimize=2)
    code = next(const for const in module.co_consts if isinstance(const, types.CodeType))
    check_bytecode(code)
    function = types.FunctionType(code, {"__builtins__": {}, **FUNCTIONS}, "compute_reward")
    memory = checked.memory
    n_stages = int(checked.declared["n_stages"])

    def evaluate(state: State, info: Info, core: tuple[Any, ...], start: Mapping[str, Vec3]) -> StateLevel:
        seen = {"step": float(info.get("step", 0))}
        seen.update(zip(memory, core, strict=True))
        seen.update({f"start_{name}_pos": at for name, at in start.items()})  # type: ignore[misc]
        level, stage, shaping, *new = function(state, seen)
        if not all(map(math.isfinite, (level, stage, shaping, *new))):
            raise FloatingPointError("a result is not finite")
        return StateLevel(level, shaping, max(0, min(n_stages, int(stage))), (), tuple(new))

    return Compiled(
        evaluate,
        tuple(sorted(checked.keys | {"success"})),
        tuple(sorted(checked.start_objects)),
        (0.0,) * len(memory),
        n_stages,
        checked.declared["max_level"],
        -checked.declared["max_level"],
        checked.declared["success_reward"],
    )


def check_bytecode(code: types.CodeType) -> None:
    """
    Refuse bytecode that the allowed syntax cannot have produced.

    :raises RewardError: If there is any, naming the operation; it would be a hole in the allow-list.
    """
    for instruction in dis.get_instructions(code):
        if any(part in instruction.opname for part in _FORBIDDEN):
            raise RewardError(f"refused bytecode operation {instruction.opname}")
    strange = set(code.co_names) - set(FUNCTIONS)
    if strange or code.co_freevars or code.co_cellvars or code.co_argcount != 2 or code.co_flags & 0x2AC:
        raise RewardError(f"refused names or flags in bytecode: {sorted(strange)}")
    for const in code.co_consts:
        if type(const) not in (float, bool, int, str, type(None), tuple):
            raise RewardError(f"refused constant in bytecode: {type(const).__name__}")
