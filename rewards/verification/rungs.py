"""Where an episode passed a spec's stages and rungs."""

from collections.abc import Iterator
from typing import NamedTuple

from sb3_tgrpo.rewards.episodes.play import Played
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts
from sb3_tgrpo.rewards.program.compile import SpecCompiler
from sb3_tgrpo.rewards.program.spec import RewardSpec, Track


class SpecPart(NamedTuple):
    """A rung or a requirement, by indices, and in words; ``rung`` is -1 for a requirement."""

    track: int
    stage: int
    rung: int
    text: str


def completions(played: Played, track: str, n_stages: int) -> list[int | None]:
    """Step at which each stage of a track was first done."""
    at = [step.terms[f"stage_{track}"] for step in played.steps]
    return [next((t for t, value in enumerate(at) if value > j), None) for j in range(n_stages)]


def missed_rungs(spec: RewardSpec, facts: TaskFacts, played: Played) -> list[SpecPart]:
    """Rungs that no step of an episode passes while their stage is on, up to the step that completes it."""
    compiler = SpecCompiler(spec, facts)
    start = played.start(facts)
    missed = []
    for i, track in enumerate(spec.tracks):
        at = [step.terms[f"stage_{track.name}"] for step in played.steps]
        for j, stage in enumerate(track.stages):
            if stage.ladder is None:
                continue
            variable = compiler.variable(stage.ladder.variable)
            on = [t for t in range(len(at)) if at[t] == j or (t and at[t - 1] == j)]
            values = [variable(played.states[t], start) for t in on]
            for k, rung in enumerate(stage.ladder.rungs):
                below = stage.ladder.op == "below"
                if not any(v < rung.threshold if below else v > rung.threshold for v in values):
                    reached = (min(values) if below else max(values)) if values else float("nan")
                    text = f"rung {rung.threshold:g} of {track.name}.{stage.name} (nearest {reached:.4f})"
                    missed.append(SpecPart(i, j, k, text))
    return missed


NOISE = 0.004
"""Metres or radians: what a rung must be away from where its stage begins."""


def idle_parts(spec: RewardSpec, facts: TaskFacts, played: Played) -> Iterator[SpecPart]:
    """Requirements that hold before anything is done, and rungs that are passed when their stage begins: they do nothing."""
    compiler = SpecCompiler(spec, facts)
    start = played.start(facts)
    for i, track in enumerate(spec.tracks):
        done = completions(played, track.name, len(track.stages))
        for j, stage in enumerate(track.stages):
            parts = [part for c in stage.requires for part in getattr(c, "conditions", (c,))]
            for part in parts:
                if compiler.condition(part)(played.states[0], start):
                    text = f"{track.name}.{stage.name} requires what already holds at reset: {part.model_dump(mode='json')}"
                    yield SpecPart(i, j, -1, text)
            if stage.ladder is None:
                continue
            entered = done[j - 1] if j else 0
            value = compiler.variable(stage.ladder.variable)(played.states[entered or 0], start)
            for k, rung in enumerate(stage.ladder.rungs):
                way = value - rung.threshold if stage.ladder.op == "below" else rung.threshold - value
                if way < NOISE:
                    text = f"rung {rung.threshold:g} of {track.name}.{stage.name} is passed when the stage begins"
                    yield SpecPart(i, j, k, text)


def before_contact(track: Track, facts: TaskFacts) -> float:
    """Points of a track that need no contact with an object: all of them if it is about a joint."""
    objects = set(facts.names("object"))
    total = 0.0
    for stage in track.stages:
        if objects & set(stage.contacts):
            return total
        total += stage.points
    return total


def n_rungs(spec: RewardSpec | None) -> int:
    """Rungs of all ladders."""
    return sum(len(s.ladder.rungs) for t in spec.tracks for s in t.stages if s.ladder) if spec else 0
