"""
TGRPO on a LIBERO-Object task, from scratch, in a few minutes on two cores: groups of eight start alike, a multi-stage reward
judges every step, and the arm learns to go for the object.

The policy is a small network on the robot's own state (it neither sees nor reads; a vision-language-action policy does)
and the scene is drawn with the built-in light assets, whose physics is LIBERO's. Writes a curve and two videos.

    python examples/02_libero.py
"""

import argparse
import json
from pathlib import Path

import gymnasium as gym
import imageio.v2 as imageio
import matplotlib
import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_tgrpo import TGRPO
from sb3_tgrpo.envs import make_group_env

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def make_env(task: int, render_mode: str | None = None) -> gym.Env:
    """The task with the shipped reward, observed through the robot's state alone, cut at five seconds."""
    env = gym.make(
        f"LIBERO/libero_object-{task}-v0",
        reward=f"libero_object-{task}",
        observations=("state",),
        assets="light",
        render_mode=render_mode,
        max_episode_steps=100,
    )
    return gym.wrappers.FlattenObservation(gym.wrappers.FilterObservation(env, ("state",)))


class Watch(BaseCallback):
    """One line per group: what its members earned and how far they came."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer
        returns = (buffer.rewards * buffer.mask).sum(axis=0)  # type: ignore[attr-defined]
        progress = np.where(buffer.mask, buffer.step_signal, 0.0).max(axis=0)  # type: ignore[attr-defined]
        row = {"steps": self.num_timesteps, "reward": returns.mean(), "best": returns.max(), "progress": progress.mean()}
        self.rows.append({key: float(value) for key, value in row.items()})
        bar = "#" * round(40 * self.rows[-1]["progress"])
        print(
            f"{self.num_timesteps:6d} steps  group {len(self.rows):3d}  "
            f"reward {row['reward']:6.2f} (best {row['best']:6.2f})  progress {row['progress']:5.1%} {bar}",
            flush=True,
        )


def record(model: TGRPO, task: int, path: Path) -> None:
    """One episode of the policy's most likely actions, from the first stored start."""
    env = make_env(task, render_mode="rgb_array")
    obs, _ = env.reset(options={"init_state_id": 0})
    frames, over = [env.render()], False
    while not over:
        action, _ = model.predict(obs, deterministic=True)
        obs, _, terminated, truncated, _ = env.step(action)
        frames.append(env.render())
        over = terminated or truncated
    env.close()
    imageio.mimwrite(path, frames, fps=20, macro_block_size=None)


def plot(rows: list[dict[str, float]], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    steps = [row["steps"] for row in rows]
    left.plot(steps, [row["best"] for row in rows], color="0.75", label="best of the group")
    left.plot(steps, [row["reward"] for row in rows], label="mean of the group")
    left.set(xlabel="environment steps", ylabel="reward per episode")
    left.legend()
    right.plot(steps, [row["progress"] for row in rows])
    right.set(xlabel="environment steps", ylabel="progress through the stages", ylim=(0, None))
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", type=int, default=9, help="task of LIBERO-Object (default: 9, the orange juice)")
    parser.add_argument("--steps", type=int, default=32_000, help="environment steps that count")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/libero_example"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    th.set_num_threads(1)  # the cores belong to the simulators

    env = make_group_env(make_env, args.group_size, env_kwargs={"task": args.task}, subprocess=True)
    model = TGRPO(
        "MlpPolicy",
        env,
        learning_rate=1e-3,
        n_epochs=10,
        batch_size=256,
        kl_coef=0.0,  # from scratch there is no start policy worth staying near
        policy_kwargs={"log_std_init": -1.0},
        seed=args.seed,
        device="cpu",
    )
    print(f"LIBERO-Object task {args.task}, light assets, groups of {args.group_size}, {args.steps} steps")
    record(model, args.task, args.out / "before.mp4")
    watch = Watch()
    model.learn(args.steps, callback=watch)
    record(model, args.task, args.out / "after.mp4")
    model.save(args.out / "model.zip")
    plot(watch.rows, args.out / "curve.png")
    settings = {key: str(value) for key, value in vars(args).items()} | {"assets": "light"}
    (args.out / "run.json").write_text(json.dumps({"settings": settings, "groups": watch.rows}, indent=1))
    ends = [np.mean([row["reward"] for row in rows]) for rows in (watch.rows[:5], watch.rows[-5:])]
    print(f"Mean reward of the first five groups {ends[0]:.2f}, of the last five {ends[1]:.2f}.")
    print(f"See {args.out}/curve.png, {args.out}/before.mp4 and {args.out}/after.mp4.")
    env.close()


if __name__ == "__main__":
    main()
