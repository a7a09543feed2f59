"""
Runs hostile documents in this process and says what happened to each; started by test_rewards_hostile.py.

Reads pickled (engine, items, canary path) from a file; writes one JSON line per item. ``engine`` is ``python`` or ``spec``, or
``exec``, an unprotected evaluator that shows that this harness notices harm.
"""

import copy
import json
import pickle
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from rewards_fixtures import make_facts, make_spec, make_state

from sb3_tgrpo.rewards.facts import helpers
from sb3_tgrpo.rewards.facts.errors import RewardError
from sb3_tgrpo.rewards.program.program import RewardProgram

SECRET = "planted-secret"
helpers.SECRET = SECRET  # type: ignore[attr-defined]
FACTS = make_facts()
EVENTS: list[str] = []
WATCHED = (
    "open", "import", "os.", "subprocess.", "socket.", "ctypes.", "shutil.", "builtins.input", "pickle.", "sys._getframe",
    "object.__getattr__", "object.__setattr__", "object.__delattr__", "gc.", "signal.", "webbrowser.", "tempfile.", "cpython.",
)  # fmt: skip
watching = False


def hook(event: str, args: tuple[Any, ...]) -> None:
    """Note what touches the machine or the interpreter while a document is being handled."""
    if event == "open" and args[0] == "<reward>":
        return  # CPython's parser looks for the line of a syntax error in a file of the name it was given
    if watching and event.startswith(WATCHED):
        EVENTS.append(event)


def states() -> list[dict[str, Any]]:
    """Ordinary and extreme states."""
    far = (1e6, -1e6, 1e6)
    return [
        make_state(FACTS),
        make_state(FACTS, gripper_opening=0.0, eef_pos=far),
        make_state(FACTS, eef_pos=(0.05, -0.1, 0.07), ketchup_1_grasped=True),
        make_state(FACTS, eef_pos=(float("inf"), 0.0, float("nan")), gripper_opening=float("nan")),
        make_state(FACTS, goal_0=True, success=True, ketchup_1_pos=far),
    ]


def unprotected(source: str) -> Any:
    """What must not be built: exec with empty builtins."""
    scope: dict[str, Any] = {"__builtins__": {}, **helpers.FUNCTIONS}
    exec(source, scope)
    function = scope["compute_reward"]
    return lambda state, info, memory: ((function(state, info),), memory)


def handle(engine: str, document: Any) -> str:
    """Compile and run one document: ``refused``, ``harmless`` or what it did."""
    try:
        if engine == "spec":
            program: Any = RewardProgram.from_spec(document, facts=FACTS)
        elif engine == "python":
            program = RewardProgram.from_python(document, facts=FACTS)
        else:
            program = unprotected(document)
    except RewardError:
        return "refused"
    for payment in ("per_step", "latched", "potential") if engine != "exec" else ("exec",):
        paying = program.with_payment(payment) if engine != "exec" else program
        memory = paying.reset() if engine != "exec" else None
        for t, state in enumerate(states() * 5):
            info = {"step": t}
            before = copy.deepcopy((state, info))
            step, memory = paying(state, info, memory)
            if repr(before) != repr((state, info)):
                return "changed its arguments"
            reward = step[0]
            if type(reward) is not float or reward != reward or abs(reward) > (paying.bound if engine != "exec" else 1e9):
                return f"returned {type(reward).__name__} {str(reward)[:40]}"
    return "harmless"


def main(path: str) -> None:
    """Handle every item of the pickled request."""
    global watching
    with open(path, "rb") as file:
        engine, items, canary = pickle.load(file)
    limit = 1 << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    RewardProgram.from_python(RewardProgram.from_spec(make_spec(), facts=FACTS).to_python(), facts=FACTS)  # imports done
    handle("python", "def compute_reward(state, info):\n    max_level = 1.0\n    return x.y\n")
    handle("spec", "{")
    sys.addaudithook(hook)
    functions = dict(helpers.FUNCTIONS)
    attributes = {name: dict(vars(function)) for name, function in functions.items()}
    for name, document in items:
        if engine != "spec" and isinstance(document, str):
            document = document.replace("CANARY", canary)
        print(json.dumps({"started": name}), flush=True)
        random_state, modules = random.getstate(), set(sys.modules)
        EVENTS.clear()
        start = time.process_time()
        watching = True
        try:
            verdict = handle(engine, document)
        except BaseException as error:
            verdict = f"raised {type(error).__name__}: {str(error)[:80]}"
        finally:
            watching = False
        seconds = time.process_time() - start
        if name.startswith("path: "):
            EVENTS[:] = [event for event in EVENTS if event != "open"]
        if EVENTS:
            verdict = f"touched {sorted(set(EVENTS))}"
        if helpers.FUNCTIONS != functions or any(vars(f) != attributes[n] for n, f in functions.items()):
            verdict = "changed the helpers"
        if random.getstate() != random_state or set(sys.modules) - modules:
            verdict = f"changed the interpreter: {sorted(set(sys.modules) - modules)[:5]}"
        print(json.dumps({"name": name, "verdict": verdict, "seconds": seconds}), flush=True)
    heavy = {"torch", "anthropic", "matplotlib"} & set(sys.modules)
    print(
        json.dumps({"finished": True, "heavy": sorted(heavy), "peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss})
    )


if __name__ == "__main__":
    main(sys.argv[1])
