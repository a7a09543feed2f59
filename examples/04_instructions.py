"""
Does a policy follow its instruction? The same scene, the same initial states, another sentence: which object ends up in the
basket?

    python examples/04_instructions.py CHECKPOINT --targets chocolate_pudding ketchup bbq_sauce

CHECKPOINT is a policy fine-tuned on demonstrations of all these targets (see docs/results/multi_task.md). Plays every initial
state under every instruction, greedily and sampled, prints tables and writes a picture.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import matplotlib
import numpy as np
import torch as th

from sb3_tgrpo.decoding import Decoding
from sb3_tgrpo.envs import LiberoEnv
from sb3_tgrpo.envs.experts.motion import rotation_of
from sb3_tgrpo.evaluation import Rate
from sb3_tgrpo.evaluation.adapters import BatchedTokenPolicy
from sb3_tgrpo.evaluation.player import EpisodePlayer, PlayedEpisode
from sb3_tgrpo.evaluation.protocol import EpisodeRequest
from sb3_tgrpo.openvla import OpenVLAPolicy
from sb3_tgrpo.rewards.facts.task_facts import load_task_facts
from sb3_tgrpo.rewards.facts.task_name import TaskName

matplotlib.use("Agg")
from matplotlib import pyplot as plt

LIFTED = 0.03
"""Metres by which a held object has to rise."""


class Outcome(NamedTuple):
    """An episode: what was asked for, and the first object touched, lifted and in the basket, ``"none"`` if there is none."""

    target: str
    start: int
    touched: str
    lifted: str
    basket: str
    success: bool
    steps: int


class Watch(gym.Wrapper):
    """Notes the first object that the hand touches, the first one lifted, and the first inside the basket by LIBERO's rule."""

    def __init__(self, env: LiberoEnv) -> None:
        super().__init__(env)
        facts = load_task_facts(f"{env.suite}-{env.task_index}")
        self.region = facts.sites[0]
        self.things = {thing.name: thing.kind for thing in facts.objects if thing.name != self.region.parent}

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        state = self.env.unwrapped.facts()  # type: ignore[attr-defined]
        self.heights = {name: state[f"{name}_pos"][2] for name in self.things}
        self.noted = {"touched": "none", "lifted": "none", "basket": "none"}
        return observation, {**info, **self.noted}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        state = self.env.unwrapped.facts()  # type: ignore[attr-defined]
        center = np.array(state[f"{self.region.name}_pos"])
        half = np.abs(rotation_of(state[f"{self.region.name}_quat"]) @ np.array(self.region.half_size))
        for name, kind in self.things.items():
            position = np.array(state[f"{name}_pos"])
            if self.noted["touched"] == "none" and state[f"{name}_touched"]:
                self.noted["touched"] = kind
            if self.noted["lifted"] == "none" and state[f"{name}_grasped"] and position[2] > self.heights[name] + LIFTED:
                self.noted["lifted"] = kind
            inside = (position > center - half - [0, 0, 0.01]).all() and (position < center + half).all()
            if self.noted["basket"] == "none" and inside:
                self.noted["basket"] = kind
        return observation, reward, terminated, truncated, {**info, **self.noted}


def make_env(args: argparse.Namespace, target: str) -> gym.Env:
    return Watch(LiberoEnv(*TaskName.parse(args.env), target=target, assets=args.assets, image_size=args.image_size))


def play(policy: OpenVLAPolicy, args: argparse.Namespace, decoding: Decoding) -> tuple[list[Outcome], list[PlayedEpisode]]:
    """:return: All outcomes, and the episodes from the initial state that is shown, with pictures."""
    player = EpisodePlayer(
        {target: partial(make_env, args, target) for target in args.targets},
        BatchedTokenPolicy(policy, decoding, args.seed),
        n_envs=args.n_envs,
        subprocess=args.n_envs > 1,
        max_episode_steps=args.max_steps,
        picture=lambda observation, info: observation["image"][::-1].copy(),
        wants_pictures=lambda request: decoding.greedy and request.key == args.show,
    )
    starts = range(args.first, args.first + args.starts)
    requests = [EpisodeRequest(target, 0, {"init_state_id": start}, start) for start in starts for target in args.targets]
    outcomes, shown = [], []
    for played in player.play(requests):
        request, info = played.request, played.info
        firsts = info["touched"], info["lifted"], info["basket"]
        outcomes.append(Outcome(request.task, request.key, *firsts, played.success, played.length))
        shown += [played] if played.pictures else []
        noted = "touched {}, lifted {}, in the basket {}".format(*firsts)
        print(f"asked for {request.task}, initial state {request.key}: {noted}, {played.length} steps", flush=True)
    in_order = {key: number for number, key in enumerate((request.task, request.key) for request in requests)}
    return (
        sorted(outcomes, key=lambda outcome: in_order[outcome.target, outcome.start]),
        sorted(shown, key=lambda played: in_order[played.request.task, played.request.key]),
    )


def table(outcomes: list[Outcome], targets: list[str]) -> str:
    """Rows: what was asked for. Columns: in how many episodes an object was the first touched / lifted / in the basket."""
    firsts = ("touched", "lifted", "basket")
    others = sorted({getattr(outcome, first) for outcome in outcomes for first in firsts} - {*targets, "none"})
    columns = [*targets, *others, "none"]
    lines = [
        "| asked for | " + " | ".join(name.replace("_", " ") for name in columns) + " | success |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for target in targets:
        asked = [outcome for outcome in outcomes if outcome.target == target]
        cells = [
            " / ".join(str(sum(getattr(outcome, first) == name for outcome in asked)) for first in firsts) for name in columns
        ]
        success = Rate(sum(outcome.success for outcome in asked), len(asked))
        lines.append(f"| {target.replace('_', ' ')} | {' | '.join(cells)} | {success} |")
    return "\n".join(lines)


def summary(outcomes: list[Outcome], targets: list[str]) -> str:
    """How often the sentence decided."""
    right = {}
    for first in ("touched", "lifted"):
        some = [outcome for outcome in outcomes if getattr(outcome, first) != "none"]
        right[first] = f"{Rate(sum(getattr(o, first) == o.target for o in some), len(some))}" if some else "0/0"
    starts = {outcome.start for outcome in outcomes}
    by_start = {(outcome.start, outcome.target): outcome for outcome in outcomes}
    all_right = sum(all(by_start[start, target].success for target in targets) for start in starts)
    return (
        f"The first object touched was the one asked for: {right['touched']} of the episodes in which one was touched.\n"
        f"The first object lifted was the one asked for: {right['lifted']} of the episodes in which one was lifted.\n"
        f"All {len(targets)} instructions carried out from one initial state: {Rate(all_right, len(starts))} of the states."
    )


def draw(shown: list[PlayedEpisode], assets: str, path: Path, columns: int = 6) -> None:
    """One row per instruction: pictures at equal distances in time."""
    size = 1.7 * columns, 1.95 * len(shown)
    figure, axes = plt.subplots(len(shown), columns, figsize=size, squeeze=False)
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.05, top=0.9, wspace=0.04, hspace=0.2)
    for row, played in zip(axes, shown, strict=True):
        steps = np.linspace(0, played.length, columns).round().astype(int)
        for axis, step in zip(row, steps, strict=True):
            axis.imshow(played.pictures[step])
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(f"step {step}", fontsize=7, labelpad=2)
        asked, basket = (name.replace("_", " ") for name in (played.request.task, played.info["basket"]))
        row[0].set_title(f"asked for: {asked}; in the basket: {basket}", fontsize=9, loc="left")
    figure.suptitle(f"Stored initial state {shown[0].request.key}, greedy, {assets} assets", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--targets", nargs="+", required=True, metavar="OBJECT", help="objects of the scene to ask for")
    parser.add_argument("--env", default="libero_object-8", help="the scene (default %(default)s)")
    parser.add_argument("--starts", type=int, default=25, help="stored initial states per instruction (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--show", type=int, default=None, metavar="K", help="the initial state to draw; default: the first")
    parser.add_argument("--image-size", type=int, default=128, help="as in the demonstrations (default %(default)s)")
    parser.add_argument("--assets", choices=("auto", "full", "light"), default="light")
    parser.add_argument(
        "--temperatures", type=float, nargs="+", default=[0.0, 1.0], metavar="T", help="of sampling; 0: greedy"
    )
    parser.add_argument("--max-steps", type=int, default=None, help="cut episodes here; default: the suite's limit")
    parser.add_argument("--n-envs", type=int, default=2, help="environments at once, a process each")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    parser.add_argument("--out", type=Path, default=Path("runs/instructions"))
    args = parser.parse_args()
    args.show = args.first if args.show is None else args.show
    args.out.mkdir(parents=True, exist_ok=True)
    th.set_num_threads(1)  # the cores belong to the simulators

    env = make_env(args, args.targets[0])
    policy = OpenVLAPolicy.for_env(env, args.checkpoint)
    policy.set_training_mode(False)
    results = {}
    for temperature in args.temperatures:
        decoding = Decoding(temperature)
        how = "greedy" if decoding.greedy else f"sampled, {decoding}"
        outcomes, shown = play(policy, args, decoding)
        results[how] = [outcome._asdict() for outcome in outcomes]
        print(f"\n{how}, {args.assets} assets: first touched / lifted / in the basket, of {args.starts} initial states each\n")
        print(f"{table(outcomes, args.targets)}\n\n{summary(outcomes, args.targets)}\n")
        if shown:
            draw(shown, args.assets, args.out / "instructions.png")
    settings = {key: str(value) for key, value in vars(args).items()}
    (args.out / "outcomes.json").write_text(json.dumps({"settings": settings, "outcomes": results}, indent=1) + "\n")
    print(f"See {args.out}/instructions.png and {args.out}/outcomes.json.")


if __name__ == "__main__":
    main()
