"""The same scene with another target: what changes, what does not, and who can work with it."""

import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from sb3_tgrpo.cli import main
from sb3_tgrpo.envs import CollectionSettings, LiberoEnv, collect_demos, key_poses, load_demos
from sb3_tgrpo.envs.experts.scripted import ScriptedExpert
from sb3_tgrpo.envs.experts.smooth import SmoothExpert
from sb3_tgrpo.envs.libero.target_variants import available_targets, target_facts, target_variant, write_target_variant
from sb3_tgrpo.envs.libero.tasks import get_task
from sb3_tgrpo.envs.spaces import decode_instruction
from sb3_tgrpo.rewards import RewardProgram, load_reward
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts, load_task_facts
from sb3_tgrpo.sft.dataset import DemonstrationDataset

TASK = get_task("libero_object", 8)
FACTS = load_task_facts("libero_object-8")
SENTENCE = "pick up the {} and place it in the basket"


def make(target: str | None, **kwargs) -> LiberoEnv:
    return LiberoEnv("libero_object", 8, target=target, **{"assets": "light", "observations": (), **kwargs})


# ---------------------------------------------------------------------- the definition


def test_only_instruction_goal_and_object_of_interest_change() -> None:
    variant = target_variant(TASK, "salad_dressing")
    assert variant.instruction == SENTENCE.format("salad dressing")
    assert (variant.suite, variant.index, variant.init_file) == (TASK.suite, TASK.index, TASK.init_file)
    before, after = TASK.read_bddl().splitlines(), variant.read_bddl().splitlines()
    changed = [(a.strip(), b.strip()) for a, b in zip(before, after, strict=True) if a != b]
    assert changed == [
        (
            "(:language Pick the chocolate pudding and place it in the basket)",
            "(:language Pick the salad dressing and place it in the basket)",
        ),
        ("chocolate_pudding_1", "salad_dressing_1"),
        ("(And (In chocolate_pudding_1 basket_1_contain_region))", "(And (In salad_dressing_1 basket_1_contain_region))"),
    ]


def test_every_task_of_libero_object_has_five_variants() -> None:
    for index in range(10):
        task = get_task("libero_object", index)
        targets = available_targets(task)
        assert len(targets) == 6 and "basket" not in targets
        own = [target for target in targets if target_variant(task, target) is task]
        assert [task.instruction] == [SENTENCE.format(target.replace("_", " ")) for target in own]
        assert len({target_variant(task, target).instruction for target in targets}) == 6


def test_unknown_targets_are_refused_with_those_that_there_are() -> None:
    available = r"orange_juice, bbq_sauce, ketchup, salad_dressing, alphabet_soup"
    for target in ("butter", "basket", "basket_1", "ketchup_2", ""):
        with pytest.raises(ValueError, match=rf"{target}.*{available}"):
            LiberoEnv("libero_object", 8, target=target, assets="light")
        with pytest.raises(ValueError, match=available):
            target_facts(FACTS, target)
    with pytest.raises(ValueError, match="does not ask to put one object"):
        target_variant(get_task("libero_goal", 0), "plate")  # open a drawer
    with pytest.raises(ValueError, match="does not ask to put one object"):
        target_facts(load_task_facts("libero_goal-0"), "plate")
    with pytest.raises(ValueError, match="does not name 'akita_black_bowl'"):
        target_variant(get_task("libero_goal", 8), "cream_cheese")  # "the bowl"


def test_two_of_a_kind_can_not_be_told_apart_by_a_sentence() -> None:
    two = TASK.read_bddl().replace("bbq_sauce_1 - bbq_sauce", "bbq_sauce_1 bbq_sauce_2 - bbq_sauce")
    with pytest.raises(ValueError, match="Available: chocolate_pudding, orange_juice, ketchup, salad"):
        target_variant(replace(TASK, bddl_text=two), "bbq_sauce")


def test_a_file_to_change_further(tmp_path: Path) -> None:
    path = write_target_variant(TASK, "ketchup_1", tmp_path / "tasks")
    assert path.name == "pick_up_the_ketchup_and_place_it_in_the_basket.bddl"
    env, other = LiberoEnv.from_bddl(path, assets="light", observations=()), make("ketchup")
    assert env.instruction == other.instruction == SENTENCE.format("ketchup")
    assert path.read_text() == other.task.read_bddl()


# ---------------------------------------------------------------------- the environment


@pytest.fixture(scope="module")
def envs():
    made = {target: make(target) for target in (None, "ketchup")}
    yield made
    for env in made.values():
        env.close()


def test_a_seed_gives_the_same_start_and_another_sentence(envs: dict[str | None, LiberoEnv]) -> None:
    own, other = envs[None], envs["ketchup"]
    for seed, options in ((0, None), (7, None), (0, {"init_state_id": 3})):
        first, second = (env.reset(seed=seed, options=options)[0] for env in (own, other))
        np.testing.assert_array_equal(own.flat_state(), other.flat_state())
        assert decode_instruction(first["instruction"]) == SENTENCE.format("chocolate pudding")
        assert decode_instruction(second["instruction"]) == SENTENCE.format("ketchup")
    rng = np.random.default_rng(0)
    for _ in range(20):
        action = rng.uniform(-1, 1, 7).astype(np.float32)
        own.step(action), other.step(action)
    np.testing.assert_array_equal(own.flat_state(), other.flat_state())


def test_facts_are_those_that_are_measured(envs: dict[str | None, LiberoEnv]) -> None:
    measured = TaskFacts.from_dict(envs["ketchup"].task_facts())
    assert measured == target_facts(FACTS, "ketchup")
    assert target_facts(FACTS, "chocolate_pudding") is FACTS


def test_experts_put_the_other_object_into_the_basket(envs: dict[str | None, LiberoEnv]) -> None:
    env = envs["ketchup"]
    facts = target_facts(FACTS, "ketchup")
    for expert in (SmoothExpert(facts), ScriptedExpert(facts, seed=0)):
        env.reset(seed=1)
        over = success = False
        while not over:
            _, _, success, truncated, _ = env.step(expert.act(env.facts()))
            over = success or truncated
        assert success
        region = np.array(env.facts()["basket_1_contain_region_pos"])
        across = {name: np.linalg.norm((np.array(env.facts()[f"{name}_pos"]) - region)[:2]) for name in facts.names("object")}
        assert sorted(across, key=across.__getitem__)[:2] == ["basket_1", "ketchup_1"]
        assert across["chocolate_pudding_1"] > 0.2


def test_a_shipped_reward_of_the_own_target_is_refused() -> None:
    shipped = load_reward("libero_object-8")
    again = RewardProgram.from_python(shipped.to_python(), task="libero_object-8")
    for reward in ("libero_object-8", "LIBERO/libero_object-8-v0", shipped, shipped.with_payment("potential"), again):
        with pytest.raises(ValueError, match=r"reward is for '.*chocolate pudding.*', not for '.*ketchup"):
            make("ketchup", reward=reward)
    facts = target_facts(load_task_facts("libero_object-8"), "ketchup")
    own = json.loads(shipped.spec.to_json().replace("chocolate_pudding", "ketchup"))  # type: ignore[union-attr]
    assert make("ketchup", reward=RewardProgram.from_spec(own, facts=facts)).reward_program.instruction == facts.instruction
    assert make("chocolate_pudding", reward="libero_object-8").reward_program is not None


def test_smooth_expert_wants_an_open_container_and_something_to_hold() -> None:
    for task in ("libero_goal-3", "libero_10-5"):  # into a drawer, into a caddy
        with pytest.raises(ValueError, match=f"{task}.*open container"):
            SmoothExpert(task)
    wide = [replace(thing, aabb_hi=(0.1, 0.1, 0.1)) if thing.kind == "ketchup" else thing for thing in FACTS.objects]
    with pytest.raises(ValueError, match=r"ketchup_1 is 0\.1"):
        SmoothExpert(target_facts(replace(FACTS, objects=tuple(wide)), "ketchup"))


# ---------------------------------------------------------------------- demonstrations and fine-tuning


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A demonstration of the task and one of a variant, from the same start."""
    folder = tmp_path_factory.mktemp("demos")
    common = ["--env", "libero_object-8", "--demos", "1", "--assets", "light", "--image-size", "64", "--expert", "smooth"]
    common += ["--detour", "0", "--seed", "3", "--workers", "1", "--quiet"]
    assert main(["demos", "collect", *common, "--out", str(folder / "own.hdf5")]) == 0
    assert main(["demos", "collect", *common, "--target", "ketchup_1", "--out", str(folder / "ketchup.hdf5")]) == 0
    return [folder / "own.hdf5", folder / "ketchup.hdf5"]


def test_files_say_what_they_show(files: list[Path]) -> None:
    own, ketchup = map(load_demos, files)
    assert (own.task, own.instruction) == ("libero_object-8", SENTENCE.format("chocolate pudding"))
    assert (ketchup.task, ketchup.instruction) == ("libero_object-8:ketchup", SENTENCE.format("ketchup"))
    assert "target" not in own.record and ketchup.record["target"] == "ketchup"
    np.testing.assert_array_equal(own[0].states[0], ketchup[0].states[0])
    height = [float(np.ptp(demos[0].facts["ketchup_1_pos"][:, 2])) for demos in (own, ketchup)]
    assert height[0] < 0.01 and height[1] > 0.1
    with pytest.raises(ValueError, match="libero_object-8:ketchup, not of libero_object-8"):
        load_demos(files[1], task="libero_object-8")
    demos = load_demos(files[1], task="libero_object-8:ketchup")
    with pytest.raises(ValueError, match=r"of libero_object-8:ketchup, not of libero_object-8:milk"):
        load_demos(files[1], task="libero_object-8:milk")
    poses = {pose.name: pose for pose in key_poses(demos).poses}
    assert poses["grasp"].frame == "ketchup_1" and "world" not in {pose.frame for pose in poses.values()}
    with pytest.raises(ValueError, match=r"program is for '.*chocolate pudding.*', the demonstrations are of '.*ketchup"):
        key_poses(demos, load_reward("libero_object-8"))
    with h5py.File(files[1], "r") as file:
        attributes = file["data"].attrs
        assert attributes["bddl_file_content"] == target_variant(TASK, "ketchup").read_bddl()
        assert attributes["bddl_file_name"] == "pick_up_the_ketchup_and_place_it_in_the_basket.bddl"
        assert json.loads(attributes["problem_info"])["language_instruction"] == SENTENCE.format("ketchup")


def test_names_for_the_same_thing_are_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Available: chocolate_pudding"):
        collect_demos(CollectionSettings("libero_object-8", 1, target="milk", assets="light"), tmp_path / "demos.hdf5")
    assert not (tmp_path / "demos.hdf5.partial").exists()


def test_one_policy_is_trained_on_both(files: list[Path], tmp_path: Path) -> None:
    dataset = DemonstrationDataset(files, symmetric=True)
    assert dataset.name == dataset.suite == "libero_object"
    assert dataset.instructions == [SENTENCE.format("chocolate pudding"), SENTENCE.format("ketchup")]
    first, second = dataset.frames_of(0), dataset.frames_of(1)
    assert dataset.instruction_of(np.array([first[-1], second[0]])) == dataset.instructions
    statistics = dataset.statistics["action"]
    np.testing.assert_allclose(statistics["max"][:6], dataset.actions[:, :6].max(axis=0))
    common = ["--checkpoint", "tiny", "--steps", "2", "--validation-fraction", "0", "--device", "cpu", "--quiet"]
    assert main(["sft", "--data", *map(str, files), *common, "--out", str(tmp_path)]) == 0
    config = json.loads((tmp_path / "config.json").read_text())
    assert list(config["norm_stats"]) == ["libero_object"]
    assert config["sb3_tgrpo"]["sft"]["demonstrations"]["instructions"] == dataset.instructions
