"""Pictures of verification and generation: that each shows the numbers it says it shows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spec_templates import write_spec
from write_specs import fit

from sb3_tgrpo.rewards import RewardProgram, load_task_facts
from sb3_tgrpo.rewards.episodes.kinematic import kinematic_traces
from sb3_tgrpo.rewards.episodes.measure import measure
from sb3_tgrpo.rewards.episodes.play import play
from sb3_tgrpo.rewards.verification import plots as pictures
from sb3_tgrpo.rewards.verification.report import TITLES, Check

FACTS = load_task_facts("libero_object-4")
TRACES = kinematic_traces(FACTS, n_experts=2)
PROGRAM = RewardProgram.from_spec(fit(write_spec(FACTS, measure(FACTS, TRACES)), FACTS, TRACES), facts=FACTS)
PLAYED = [(trace, play(PROGRAM, trace.states)) for trace in TRACES]
V20 = Check("V20", TITLES["V20"], True, False, {"score": 0.9, "mutants": 20, "killed by": {"V10": 2, "V8": 9, "schema": 7}})


def test_occupancy_is_the_share_of_time_in_each_stage() -> None:
    shares = pictures.occupancy(PROGRAM, PLAYED)
    assert shares.shape == (len(TRACES), PROGRAM.n_stages + 1)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    rows = {trace.kind: row for (trace, _), row in zip(PLAYED, shares, strict=True)}
    assert rows["noop"].tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    expert = next(result for trace, result in PLAYED if trace.kind == "expert")
    for stage in range(PROGRAM.n_stages + 1):
        assert shares[0, stage] == pytest.approx(np.mean([step.stage == stage for step in expert.steps]))
    assert rows["hover"].argmax() > rows["partial"].argmax(), "waiting over the basket is a later stage than after the grasp"

    figure = pictures._plot_occupancy(PROGRAM, PLAYED)
    (image,) = figure.axes[0].images
    np.testing.assert_array_equal(image.get_array(), shares)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[0] == "expert/0 (kinematic)"
    assert len(labels) == len(TRACES)


def test_scatter_shows_return_and_stages_of_every_episode() -> None:
    points = pictures.stage_returns(PLAYED)
    assert len(points) == len(TRACES)
    assert points[0] == ("expert", PROGRAM.n_stages, pytest.approx(PROGRAM.max_level + 5.0))
    assert ("noop", 0, 0.0) in points
    drawn = [
        tuple(xy) for dots in pictures._plot_stages(PROGRAM, PLAYED).axes[0].collections for xy in dots.get_offsets().tolist()
    ]
    assert sorted(drawn) == sorted((float(stages), total) for _, stages, total in points)


def test_mutation_bars_add_up() -> None:
    bars = pictures.mutation_bars(V20)
    assert bars == {"schema": 7, "V8": 9, "V10": 2, "survived": 2}
    assert list(bars) == ["schema", "V8", "V10", "survived"], "in the order of the checks"
    figure = pictures._plot_bars(bars, "mutants", {}, "")
    assert [patch.get_height() for patch in figure.axes[0].patches] == [7, 9, 2, 2]
    assert pictures.mutation_bars(replace(V20, numbers={"why": "not asked for"})) == {}


def verdict(outcome: str, *failed: str) -> dict[str, Any]:
    """What generation writes about an answer."""
    checks = [{"id": name, "hard": True, "passed": name not in failed} for name in ("V7", "V8", "V9")]
    checks.append({"id": "V20", "hard": False, "passed": False})
    return {
        "outcome": outcome,
        "problems": [],
        "report": {"checks": checks} if outcome in ("verified", "failed checks") else None,
    }


def test_rejections_are_counted_by_reason(tmp_path: Path) -> None:
    answers = {
        "a/candidate-1-round-1": verdict("invalid"),
        "a/candidate-1-round-2": verdict("failed checks", "V8", "V9"),
        "b/candidate-1-round-1": verdict("failed checks", "V8"),
        "b/candidate-1-round-2": verdict("verified"),
        "b/candidate-2-round-1": verdict("refused"),
    }
    with pytest.raises(ValueError, match="holds no answers"):
        pictures.reject_reasons(tmp_path)
    for name, document in answers.items():
        path = tmp_path / f"{name}.verdict.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document), encoding="utf-8")
    reasons = pictures.reject_reasons(tmp_path)
    assert reasons == {"V8": 2, "invalid": 1, "V9": 1, "verified": 1, "refused": 1}
    assert next(iter(reasons)) == "V8"
    path = pictures.plot_rejects(tmp_path, tmp_path / "plots" / "rejections.png")
    assert path.stat().st_size > 1000


def test_a_picture_of_mutants_needs_the_mutation_score(tmp_path: Path) -> None:
    def names(mutation: Check | None) -> list[str]:
        folder = tmp_path / str(mutation is None)
        return [path.stem.rsplit("_", 1)[1] for path in pictures.plot_report(PROGRAM, TRACES, folder, FACTS, mutation)]

    assert names(None) == ["reward", "ladders", "returns", "occupancy", "stages"]
    assert names(V20) == ["reward", "ladders", "returns", "occupancy", "stages", "mutants"]
