"""What must hold of OpenVLAPolicy, and that each check notices the bug it guards against."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from openvla_toys import InstructionSpace, encode, observation_space, observations
from stable_baselines3 import PPO
from stable_baselines3.common.utils import check_for_correct_spaces

from sb3_tgrpo import TGRPO
from sb3_tgrpo.envs import make_group_env
from sb3_tgrpo.envs.spaces import InstructionSpace as LiberoInstructionSpace
from sb3_tgrpo.openvla.cuda_graph import GraphedGeneration
from sb3_tgrpo.openvla.model import KeyValueCache, OpenVLA
from sb3_tgrpo.openvla.policy import OpenVLAPolicy
from sb3_tgrpo.train.config import shipped_base_policy

BOX = spaces.Box(-1.0, 1.0, (7,), np.float32)


def make_policy(seed=0, space=None, action_space=BOX, **kwargs):
    th.manual_seed(seed)
    kwargs.setdefault("checkpoint", "tiny")
    return OpenVLAPolicy(space or observation_space(), action_space, lambda _: 1e-2, **kwargs)


def shake_adapter(policy, size=0.1):
    """Give the adapter an effect: it starts at zero."""
    generator = th.Generator().manual_seed(1)
    with th.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad and "lora_B" in name:
                parameter.add_(size * th.randn(parameter.shape, generator=generator))
    policy._patch_cache.clear()
    return policy


def tensors(obs):
    return {key: th.from_numpy(value) for key, value in obs.items()}


@pytest.fixture
def policy():
    return shake_adapter(make_policy(temperature=0.7))


@pytest.fixture
def obs():
    return tensors(observations(4))  # two instructions of different length


# ---------------------------------------------------------------------- log-probabilities


def independent_log_prob(policy, obs, tokens):
    """Log-density by the plainest route: one sample, one token at a time, through transformers' own forward."""
    model = policy.model
    rows = []
    for i in range(len(tokens)):
        images = policy._images({key: value[i : i + 1] for key, value in obs.items()})
        patches = model.project(model.pixel_values(model.preprocess(images)))
        prompt = policy._prompts({key: value[i : i + 1] for key, value in obs.items()}, 1).input_ids
        embed = model.language_model.model.embed_tokens
        chosen = []
        for k in range(tokens.shape[1]):
            text = embed(th.cat([prompt, tokens[i : i + 1, :k]], dim=1))
            sequence = th.cat([text[:, :1], patches, text[:, 1:]], dim=1)
            logits = model.language_model(inputs_embeds=sequence).logits[0, -1, 768:1024] / policy.temperature
            chosen.append(logits.log_softmax(-1)[tokens[i, k] - 768])
        rows.append(th.stack(chosen))
    return th.stack(rows)


@th.no_grad()
def density_error(policy, obs):
    """Recorded log-probability against the density of the distribution that was sampled from."""
    tokens, log_prob = policy.sample_actions(obs)
    return (log_prob - independent_log_prob(policy, obs, tokens.long())).abs().max().item()


def ratio_error(policy, obs):
    """How far the first ratio is from 1."""
    with th.no_grad():
        tokens, old = policy.sample_actions(obs)
    policy.set_training_mode(True)
    new, _ = policy.action_log_prob(obs, tokens.float())
    return ((new.sum(1) - old.sum(1)).exp() - 1).abs().max().item()


@th.no_grad()
def batch_error(policy, obs):
    """A batch of different instructions against one by one."""
    tokens, _ = policy.sample_actions(obs)
    together = policy.action_log_prob(obs, tokens)[0]
    singles = [
        policy.action_log_prob({k: v[i : i + 1] for k, v in obs.items()}, tokens[i : i + 1])[0] for i in range(len(tokens))
    ]
    return (together - th.cat(singles)).abs().max().item()


@th.no_grad()
def cache_error(policy, obs):
    """Cached decoding against one teacher-forced pass."""
    tokens, log_prob, _ = policy._generate(obs, 0.0)
    policy.temperature = 1.0
    return (log_prob - policy.action_log_prob(obs, tokens)[0]).abs().max().item()


CHECKS = {"density": density_error, "ratio": ratio_error, "batch": batch_error, "cache": cache_error}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("same", [True, False], ids=["one instruction", "two instructions"])
def test_properties_hold(check, same, policy):
    assert CHECKS[check](policy, tensors(observations(4, same_instruction=same))) < 1e-4


def record_at_temperature_one(monkeypatch, policy):
    original = OpenVLA.generate_from_patches

    def generate(self, patches, prompts, temperature=0.0, generator=None, n_tokens=7):
        tokens, _, hidden = original(self, patches, prompts, temperature, generator, n_tokens)
        log_probs = self.action_head(self.action_hidden(patches, prompts, tokens)).log_softmax(-1)
        return tokens, log_probs.gather(2, (tokens - 768).unsqueeze(2)).squeeze(2), hidden

    monkeypatch.setattr(OpenVLA, "generate_from_patches", generate)


def normalise_over_the_vocabulary(monkeypatch, policy):
    def generate(self, patches, prompts, noise, scale):
        tokens, _, hidden = original(self, patches, prompts, noise, scale)
        full = self.language_model.lm_head(self.action_hidden(patches, prompts, tokens)).float() * scale
        return tokens, full.log_softmax(-1).gather(2, tokens.unsqueeze(2)).squeeze(2), hidden

    original = OpenVLA._generate
    monkeypatch.setattr(OpenVLA, "_generate", generate)


def forget_the_heads_adapter(monkeypatch, policy):
    original = OpenVLA.action_head

    def head(self, hidden):
        peft_head = self.language_model.lm_head
        self.language_model.lm_head = peft_head.base_layer
        logits = original(self, hidden)
        self.language_model.lm_head = peft_head
        return logits

    monkeypatch.setattr(OpenVLA, "action_head", head)


def off_by_one_bin(monkeypatch, policy):
    original = OpenVLAPolicy._score

    def score(self, model, patches, prompts, actions):
        return original(self, model, patches, prompts, (actions - 1).clamp_min(768))

    monkeypatch.setattr(OpenVLAPolicy, "_score", score)


def dropout_left_on(monkeypatch, policy):
    for layer in policy.model.modules():
        if hasattr(layer, "lora_dropout"):
            layer.lora_dropout["default"] = th.nn.Dropout(0.5)


def rotary_rounded_after_sampling(monkeypatch, policy):
    original = OpenVLAPolicy.action_log_prob

    def log_prob(self, obs, actions):
        rotary = self.model.language_model.model.rotary_emb
        rotary.inv_freq = rotary.inv_freq.to(th.bfloat16).float()
        return original(self, obs, actions)

    monkeypatch.setattr(OpenVLAPolicy, "action_log_prob", log_prob)


def score_without_temperature(monkeypatch, policy):
    original = OpenVLAPolicy.action_log_prob

    def log_prob(self, obs, actions):
        temperature, self.temperature = self.temperature, 1.0
        result = original(self, obs, actions)
        self.temperature = temperature
        return result

    monkeypatch.setattr(OpenVLAPolicy, "action_log_prob", log_prob)


def drop_the_mask(monkeypatch, policy):
    original = OpenVLA._positions_and_mask
    monkeypatch.setattr(OpenVLA, "_positions_and_mask", lambda self, prompts, n: (original(self, prompts, n)[0], None))


def drop_a_mask_column(monkeypatch, policy):
    original = OpenVLA._positions_and_mask

    def short(self, prompts, length):
        positions, mask = original(self, prompts, length)
        if mask is not None:
            mask = mask.clone()
            mask[..., -1] = False
            mask |= th.eye(length, dtype=th.bool)
            mask[:, :, 5:, 4] = False
        return positions, mask

    monkeypatch.setattr(OpenVLA, "_positions_and_mask", short)


def lose_a_cached_key(monkeypatch, policy):
    original = KeyValueCache.update

    def update(self, key, value, layer_idx, *args, **kwargs):
        keys, values = original(self, key, value, layer_idx)
        if self.length:
            values[:, :, 8] = 0
        return keys, values

    monkeypatch.setattr(KeyValueCache, "update", update)


@pytest.mark.parametrize(
    ("check", "plant"),
    [
        ("density", record_at_temperature_one),
        ("density", normalise_over_the_vocabulary),
        ("density", forget_the_heads_adapter),
        ("density", drop_the_mask),
        ("density", drop_a_mask_column),
        ("density", lose_a_cached_key),
        ("ratio", score_without_temperature),
        ("ratio", off_by_one_bin),
        ("ratio", dropout_left_on),
        ("ratio", rotary_rounded_after_sampling),
        ("ratio", record_at_temperature_one),
        ("batch", drop_the_mask),
        ("batch", drop_a_mask_column),
        ("cache", lose_a_cached_key),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_planted_bug_is_noticed(check, plant, policy, obs, monkeypatch):
    plant(monkeypatch, policy)
    assert CHECKS[check](policy, obs) > 1e-4


def test_samples_follow_the_recorded_density(policy):
    """Frequencies of one action's first token against its probabilities (chi-square, fixed seed)."""
    th.manual_seed(3)
    obs = tensors(observations(1))
    patches = policy._patches(policy._images(obs))
    model, prompts = policy.model, policy._prompts(obs, 1)
    hidden = model.prompt_hidden(patches, prompts)
    with th.no_grad():
        probabilities = (4 * model.action_head(hidden)[0]).softmax(-1)
        many = model.prompts(prompts.input_ids.expand(2000, -1))
        tokens, log_prob, _ = model.generate_from_patches(patches.expand(2000, -1, -1), many, 0.25, n_tokens=1)
    counts = th.bincount(tokens[:, 0] - 768, minlength=256)
    expected = 2000 * probabilities
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    assert abs(statistic - 255) < 5 * (2 * 255) ** 0.5
    th.testing.assert_close(log_prob[:, 0].exp(), probabilities[tokens[:, 0] - 768], atol=1e-5, rtol=1e-4)


def test_always_one_token_per_dimension_even_if_the_end_token_wins(obs):
    """Decoding over the whole vocabulary would stop here, or return an id that is no action."""
    policy = make_policy()
    with th.no_grad():
        head = policy.model.language_model.lm_head.base_layer.weight
        patches, prompts = policy._patches(policy._images(obs)), policy._prompts(obs, 4)
        head[2] = 10 * policy.model.prompt_hidden(patches, prompts)[0]
        full = policy.model.language_model.lm_head(policy.model.prompt_hidden(patches, prompts)[:1])
        assert full.argmax() == 2
    for temperature in (0.0, 1.0):
        tokens, _, _ = policy._generate(obs, temperature)
        assert tokens.shape == (4, 7) and tokens.min() >= 768 and tokens.max() < 1024


def test_temperature_and_generator():
    policy = make_policy()
    patches = policy._patches(policy._images(tensors(observations(2))))
    prompts = policy._prompts(tensors(observations(2)), 2)
    draws = [
        policy.model.generate_from_patches(patches, prompts, 1.0, th.Generator().manual_seed(seed))[0] for seed in (0, 0, 1)
    ]
    assert th.equal(draws[0], draws[1]) and not th.equal(draws[0], draws[2])
    with pytest.raises(ValueError, match="temperature"):
        policy.model.generate_from_patches(patches, prompts, -1.0)


@th.no_grad()
@pytest.mark.parametrize("lora", ["language", "upstream"])
def test_logits_over_the_vocabulary_in_half_precision(lora):
    """What ``action_head`` has of them, but for the head's products being rounded."""
    model = shake_adapter(make_policy(dtype="bfloat16", lora=lora)).model
    pixel_values, ids = th.randn(2, 6, 64, 64), [[1, 5, 6, 7]] * 2
    logits = model.prompt_last_logits(pixel_values, ids)
    expected = model.action_head(model.prompt_hidden(model.project(pixel_values), model.prompts(ids)))
    assert logits.dtype == th.float32
    th.testing.assert_close(logits[:, model.action_rows], expected, atol=0.05, rtol=0.05)


def test_half_precision_ratio_is_bounded(obs):
    """In bfloat16 two routes through the network round differently; recorded, and small."""
    policy = shake_adapter(make_policy(dtype="bfloat16"))
    assert policy.model.language_model.model.rotary_emb.inv_freq.dtype == th.float32
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {th.float32}
    assert 0 < ratio_error(policy, obs) < 0.2


# ---------------------------------------------------------------------- reference, gradients, memory


def test_adapter_off_is_the_start_policy(obs):
    policy = make_policy()
    with th.no_grad():
        tokens, start = policy.sample_actions(obs)
        shake_adapter(policy)
        assert (policy.action_log_prob(obs, tokens)[0] - start).abs().max() > 1e-2
        assert (policy.reference_log_prob(obs, tokens) - start).abs().max() < 1e-5
        # The check notices a base that moved.
        policy.model.language_model.model.layers[0].mlp.up_proj.base_layer.weight.mul_(1.1)
        assert (policy.reference_log_prob(obs, tokens) - start).abs().max() > 1e-4


@pytest.mark.parametrize("lora", ["language", "upstream", None, {"r": 4, "lora_alpha": 8}])
def test_trainable_moves_and_frozen_does_not(lora, obs):
    policy = make_policy(lora=lora)
    before = {name: parameter.detach().clone() for name, parameter in policy.named_parameters()}
    tokens, _ = policy.sample_actions(obs)
    for _ in range(2):  # an adapter's first half only has a gradient once the second has moved
        values, log_prob, entropy = policy.evaluate_actions(obs, tokens)
        policy.optimizer.zero_grad()
        (values.mean() + log_prob.mean() + entropy.mean()).backward()
        policy.optimizer.step()
    moved = {name for name, parameter in policy.named_parameters() if not th.equal(parameter, before[name])}
    trainable = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert moved <= trainable
    unused = {name for name in trainable - moved}
    # What the forward pass never reads: each tower's last block, its final norm, the pooling head, unused vocabulary.
    assert all(any(part in name for part in ("blocks.1.", "featurizer.norm.", "attn_pool")) for name in unused), unused
    if lora == "upstream":
        assert any("vision_backbone" in name for name in moved) and any("projector" in name for name in moved)
    if isinstance(lora, dict):
        assert policy.model.language_model.lm_head.r["default"] == 4


def gradient(policy, obs, tokens, size):
    policy.optimizer.zero_grad()
    for begin in range(0, len(tokens), size):
        part = {key: value[begin : begin + size] for key, value in obs.items()}
        log_prob, entropy = policy.action_log_prob(part, tokens[begin : begin + size])
        (log_prob.sum() + entropy.sum()).div(len(tokens)).backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", ["language", "upstream"])
def test_micro_batches_and_checkpointing_do_not_change_the_gradient(lora):
    policy = shake_adapter(make_policy(lora=lora))
    obs = tensors(observations(6))
    tokens, _ = policy.sample_actions(obs)
    whole = gradient(policy, obs, tokens, 6)
    assert whole
    for checkpointing, size in [(False, 1), (False, 4), (True, 6), (True, 2)]:
        policy.model.gradient_checkpointing = checkpointing
        parts = gradient(policy, obs, tokens, size)
        assert parts.keys() == whole.keys()
        for name, value in whole.items():
            th.testing.assert_close(parts[name], value, atol=1e-5, rtol=1e-3)


def test_checkpointing_recomputes_layers(obs):
    policy = make_policy(gradient_checkpointing=True)
    tokens, _ = policy.sample_actions(obs)
    calls = []
    policy.model.language_model.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    policy.action_log_prob(obs, tokens)[0].sum().backward()
    assert len(calls) == 2


def test_vision_runs_once_per_frame_and_images_matter(obs):
    policy = make_policy()
    calls = []
    policy.model.vision_backbone.register_forward_hook(lambda module, inputs, output: calls.append(len(output)))
    tokens, _ = policy.sample_actions(obs)
    policy.action_log_prob(obs, tokens)
    policy.reference_log_prob(obs, tokens)
    assert calls == [4]
    black, white = ({**obs, "image": th.full_like(obs["image"], value)} for value in (0, 255))
    difference = policy.action_log_prob(black, tokens)[0] - policy.action_log_prob(white, tokens)[0]
    assert difference.abs().max() > 1e-4
    assert calls == [4, 1, 1]  # equal frames of a batch are computed once


def test_vision_cache_is_bounded_and_off_when_vision_is_trained(obs):
    policy = make_policy(vision_cache_mb=2 * 16 * 96 * 4 / 2**20)
    policy.sample_actions(obs)
    assert len(policy._patch_cache) == 2 and policy._patch_cache.n_bytes <= policy._patch_cache.max_bytes
    trained = make_policy(lora="upstream")
    tokens, _ = trained.sample_actions(obs)
    assert len(trained._patch_cache) == 0
    reference = trained.reference_log_prob(obs, tokens)
    shake_adapter(trained)
    th.testing.assert_close(trained.reference_log_prob(obs, tokens), reference)
    assert (trained.action_log_prob(obs, tokens)[0] - reference).abs().max() > 1e-3


def test_full_fine_tuning_has_a_frozen_copy_as_reference(obs):
    policy = make_policy(lora=None)
    tokens, start = policy.sample_actions(obs)
    with pytest.raises(RuntimeError, match="freeze_reference"):
        policy.reference_log_prob(obs, tokens)
    policy.freeze_reference()
    policy.set_training_mode(True)
    assert policy.model.training and not any(module.training for module in policy.reference_model.modules())
    policy.set_training_mode(False)
    with th.no_grad():
        policy.model.language_model.lm_head.weight.mul_(3.0)
    assert (policy.reference_log_prob(obs, tokens) - start).abs().max() < 1e-5
    other = make_policy(lora=None)
    other.load_state_dict(policy.state_dict())
    assert other.reference_model is not None
    assert (other.reference_log_prob(obs, tokens) - start).abs().max() < 1e-5
    assert (other.action_log_prob(obs, tokens)[0] - policy.action_log_prob(obs, tokens)[0]).abs().max() < 1e-6
    other.load_state_dict(make_policy(lora=None).state_dict())  # holds none: the reference stays, the policy is the new one
    assert (other.reference_log_prob(obs, tokens) - start).abs().max() < 1e-5
    assert (other.action_log_prob(obs, tokens)[0] - start).abs().max() < 1e-5


class FakeCuda:
    """Stands in for what ``graph.py`` uses of ``torch.cuda``: a graph gives back what was computed while it was recorded."""

    def __init__(self, monkeypatch):
        self.current = self.default = SimpleNamespace(wait_stream=lambda _: None)
        self.events = []
        for name in ("graph_pool_handle", "Stream", "current_stream", "CUDAGraph", "device_of"):
            monkeypatch.setattr(th.cuda, name, getattr(self, name))
        monkeypatch.setattr(th.cuda, "stream", self.on)
        monkeypatch.setattr(th.cuda, "graph", lambda graph, pool, stream: self.on(stream, ("recorded", pool)))

    def Stream(self, device):
        self.events.append(("made", device))
        return SimpleNamespace(wait_stream=lambda _: None, device=device)

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: self.events.append(("replayed",)))

    def graph_pool_handle(self):
        return "pool"

    def current_stream(self):
        return self.current

    @contextmanager
    def on(self, stream, event=("warm",)):
        self.events.append((*event, stream))
        self.current = stream
        yield
        self.current = self.default

    @contextmanager
    def device_of(self, tensor):
        self.events.append(("enter", tensor.device))
        yield
        self.events.append(("leave",))


@th.no_grad()
def test_graphs_are_recorded_and_replayed_on_the_models_device(policy, obs, monkeypatch):
    """Not on the current one; and all on one stream, without which they would not share the pool's memory."""
    cuda = FakeCuda(monkeypatch)
    graphed = GraphedGeneration(lambda *inputs: [inputs[0] * 2] * 3, lambda: None)
    prompts = policy._prompts(obs, 4)
    for rows in (4, 4, 2, 2, 2):
        graphed(th.ones(rows, 3), prompts, th.zeros(rows, 1), th.ones(()))
    device = th.device("cpu")
    stream = next(event[1] for event in cuda.events if event[0] == "warm")
    assert stream.device == device
    entered, left, warm, recorded = ("enter", device), ("leave",), ("warm", stream), ("recorded", "pool", stream)
    eager, replayed = [entered, left], [entered, ("replayed",), left]
    first, second = ([entered, *made, warm, recorded, ("replayed",), left] for made in ([("made", device)], []))
    assert cuda.events == [*eager, *first, *eager, *second, *replayed]
    graphed.clear()
    for _ in range(2):
        graphed(th.ones(4, 3), prompts, th.zeros(4, 1), th.ones(()))
    assert [event[0] for event in cuda.events].count("made") == 2  # the model may have moved


@th.no_grad()
def test_a_graph_is_replayed_for_the_adapters_it_was_recorded_with(policy, obs, monkeypatch):
    """A graph holds the branches that PEFT took in Python."""
    FakeCuda(monkeypatch)
    model = policy.model
    inputs = (policy._patches(policy._images(obs)), policy._prompts(obs, 4), th.zeros(4, 7, 256), th.ones(()))

    def check():
        expected = model._generate(*inputs)[1]
        for _ in range(3):
            assert th.equal(model._graphs(*inputs)[1], expected)
        return expected

    on = check()
    with policy.vla.disable_adapter():
        off = check()
    assert (on - off).abs().max() > 1e-2 and th.equal(check(), on)
    policy.vla.merge_adapter()
    th.testing.assert_close(check(), on, atol=1e-4, rtol=1e-4)
    assert len(model._graphs._recordings) == 3


def test_adapter_state():
    policy = make_policy()
    states = [policy.model.adapter_state()]
    with policy.vla.disable_adapter():
        states.append(policy.model.adapter_state())
    policy.vla.merge_adapter()
    states.append(policy.model.adapter_state())
    policy.vla.unmerge_adapter()
    assert policy.model.adapter_state() == states[0]
    policy.vla.add_adapter("other", policy.vla.peft_config["default"])
    policy.vla.set_adapter("other")
    states.append(policy.model.adapter_state())
    assert len(set(states)) == 4 and make_policy(lora=None).model.adapter_state() is None


@th.no_grad()
def test_a_merged_adapter_can_be_switched_off(policy, obs):
    tokens, _ = policy.sample_actions(obs)
    start = policy.reference_log_prob(obs, tokens)
    policy.vla.merge_adapter()
    assert (policy.reference_log_prob(obs, tokens) - start).abs().max() < 1e-4


def test_graphs_are_recorded_per_shape_at_the_second_call(policy, obs, monkeypatch):
    """The bookkeeping around CUDA graphs, with a stand-in that records nothing."""
    from sb3_tgrpo.openvla import cuda_graph as graph

    recorded = []

    class Recording:
        def __init__(self, generate, pool, stream, *inputs):
            recorded.append(inputs[0].shape)
            self.generate = generate

        def replay(self, *inputs):
            return self.generate(*inputs)

    FakeCuda(monkeypatch)
    monkeypatch.setattr(graph, "Recording", Recording)
    graphed = GraphedGeneration(policy.model._generate, policy.model.adapter_state, max_graphs=2)
    patches, prompts = policy._patches(policy._images(obs)), policy._prompts(obs, 4)
    noise, scale = th.zeros(4, 7, 256), th.ones(())
    with th.no_grad():
        results = [graphed(patches, prompts, noise, scale)[0] for _ in range(3)]
        assert th.equal(results[0], results[2]) and len(recorded) == 1
        for n in (1, 2, 1, 2):
            part = {key: value[:n] for key, value in obs.items()}
            graphed(patches[:n], policy._prompts(part, n), noise[:n], scale)
        assert len(recorded) == 3 and len(graphed._recordings) == 2
        policy.to(th.float64)
        assert not policy.model._graphs._recordings


@th.no_grad()
def test_nothing_is_kept_of_the_device_or_precision_before(policy, obs):
    tokens, _ = policy.sample_actions(obs)
    moved = policy.to(th.float64).action_log_prob(obs, tokens)[0]
    fresh = shake_adapter(make_policy(temperature=0.7)).to(th.float64)
    assert th.equal(moved, fresh.action_log_prob(obs, tokens)[0])
    policy.to("meta")
    assert policy._patches(policy._images(obs)).is_meta and policy._prompts(obs, 4).input_ids.is_meta


# ---------------------------------------------------------------------- the actor-critic contract


def test_shapes_of_the_actor_critic_contract(policy, obs):
    actions, values, log_prob = policy(obs)
    assert actions.shape == (4, 7) and values.shape == (4, 1) and log_prob.shape == (4,)
    assert actions.min() >= 768 and actions.max() < 1024
    values2, log_prob2, entropy = policy.evaluate_actions(obs, actions.float())
    assert values2.shape == (4, 1) and log_prob2.shape == entropy.shape == (4,)
    th.testing.assert_close(values2, values, atol=1e-4, rtol=1e-4)
    th.testing.assert_close(policy.predict_values(obs), values, atol=1e-4, rtol=1e-4)
    assert (entropy > 0).all() and (entropy < 7 * np.log(256) + 1e-3).all()
    with pytest.raises(NotImplementedError, match="evaluate_actions"):
        policy.get_distribution(obs)
    without = make_policy(value_head=False)
    assert without.value_net is None and (without.predict_values(obs) == 0).all() and (without(obs)[1] == 0).all()


def test_predict_is_greedy_when_deterministic(policy):
    obs = observations(3)
    first, _ = policy.predict(obs, deterministic=True)
    second, _ = policy.predict(obs, deterministic=True)
    assert first.shape == (3, 7) and np.array_equal(first, second) and BOX.contains(first[0])
    tokens = policy._generate(tensors(obs), 0.0)[0]
    assert np.array_equal(first, policy.unscale_action(tokens.numpy()))
    single, _ = policy.predict({key: value[0] for key, value in obs.items()}, deterministic=True)
    assert np.array_equal(single, first[0])
    assert not np.array_equal(policy.predict(obs)[0], policy.predict(obs)[0])


def test_channels_first_images_give_the_same_actions():
    obs = observations(3)
    space = observation_space()
    transposed = spaces.Dict({"image": spaces.Box(0, 255, (3, 64, 64), np.uint8), "instruction": space["instruction"]})
    last, first = make_policy(), make_policy(space=transposed)
    moved = {**obs, "image": np.moveaxis(obs["image"], -1, 1)}
    assert np.array_equal(last.predict(obs, deterministic=True)[0], first.predict(moved, deterministic=True)[0])


def test_any_box_and_any_number_of_dimensions():
    space = spaces.Box(np.array([[0.0, -5.0]], dtype=np.float32), np.array([[2.0, 5.0]], dtype=np.float32))
    policy = make_policy(action_space=space)
    action, _ = policy.predict(observations(3))
    assert action.shape == (3, 1, 2) and all(space.contains(a) for a in action)
    decoded = policy.unscale_action(policy.scale_action(np.array([[[1.0, 2.5]]])))
    np.testing.assert_allclose(decoded, [[[1.0, 2.5]]], atol=0.03)


@pytest.mark.parametrize("algorithm", [TGRPO, PPO])
def test_statistics_that_were_set_come_back(algorithm, tmp_path):
    """With the policy alone and with an algorithm's zip, whatever they were built with."""

    def statistics(high):
        return {"action": {"q01": np.full(7, -high), "q99": np.full(7, high)}}

    obs, kwargs = observations(3), {"checkpoint": "tiny", "statistics": {"first": statistics(0.1)}}
    space = observation_space()

    class Env(gym.Env):
        observation_space, action_space = space, BOX

    env = make_group_env(Env, 4, subprocess=False) if algorithm is TGRPO else Env()
    model = algorithm(OpenVLAPolicy, env, seed=0, device="cpu", policy_kwargs=kwargs)
    model.save(tmp_path / "first.zip")
    before = model.predict(obs, deterministic=True)[0]
    model.policy.set_statistics({"other": statistics(0.2), "wide": statistics(0.4)}, "wide")
    after = model.predict(obs, deterministic=True)[0]
    np.testing.assert_allclose(after, 4 * before, rtol=1e-5)
    model.save(tmp_path / "model.zip")
    model.policy.save(tmp_path / "policy.pth")
    loaded = algorithm.load(tmp_path / "model.zip", device="cpu")
    loaded.save(tmp_path / "again.zip")
    for again in (loaded, algorithm.load(tmp_path / "again.zip"), OpenVLAPolicy.load(tmp_path / "policy.pth")):
        assert np.array_equal(again.predict(obs, deterministic=True)[0], after)
    assert loaded.policy.unnorm_key == "wide" and set(loaded.policy.model.norm_stats) == {"other", "wide"}
    # Parameters that tell of none leave them.
    model.set_parameters(tmp_path / "first.zip")
    assert np.array_equal(model.predict(obs, deterministic=True)[0], after)


def test_image_only_observations_take_the_instruction_from_the_policy():
    policy = make_policy(space=spaces.Box(0, 255, (64, 64, 3), np.uint8), instruction="put it to the left")
    other = make_policy()
    obs = observations(2, same_instruction=True)
    assert np.array_equal(policy.predict(obs["image"], deterministic=True)[0], other.predict(obs, deterministic=True)[0])


# ---------------------------------------------------------------------- LIBERO


def test_gripper_convention_is_liberos_only_for_libero():
    libero = make_policy(space=observation_space(suite="libero_object", assets="light", assets_by_name=False))
    assert libero.gripper == "libero" and make_policy().gripper == "none"
    assert make_policy(gripper="libero").gripper == "libero"
    model = libero.model
    # The model's 1 is open and becomes -1, its 0 is closed and becomes +1.
    ids = model.encode_actions(np.array([[0.0] * 6 + [1.0], [0.0] * 6 + [0.0]]))
    assert libero.unscale_action(ids)[:, 6].tolist() == [-1.0, 1.0]
    assert np.array_equal(libero.unscale_action(libero.scale_action(libero.unscale_action(ids))), libero.unscale_action(ids))
    every = np.tile(np.arange(768, 1024)[:, None], (1, 7))
    assert set(libero.unscale_action(every)[:, 6].tolist()) == {-1.0, 1.0}


def test_light_and_full_assets_are_not_mixed():
    """By default: by name it is the user's decision."""
    shipped = str(shipped_base_policy())

    def space(assets, by_name=False):
        image = spaces.Box(0, 255, (128, 128, 3), np.uint8)
        return spaces.Dict({"image": image, "instruction": LiberoInstructionSpace("libero_object", assets, by_name)})

    policy = make_policy(space=space("light"), checkpoint=shipped, lora=None)
    make_policy(space=space("full", by_name=True), checkpoint=shipped, lora=None)
    with pytest.raises(ValueError, match=r"LIBERO's own assets, but the checkpoint .* was trained with the light ones"):
        make_policy(space=space("full"), checkpoint=shipped, lora=None)
    # What load(env=...) and set_env of Stable-Baselines3 compare.
    check_for_correct_spaces(SimpleNamespace(observation_space=space("light", True), action_space=BOX), *spaces_of(policy))
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        check_for_correct_spaces(SimpleNamespace(observation_space=space("full"), action_space=BOX), *spaces_of(policy))


def spaces_of(policy):
    return policy.observation_space, policy.action_space


def test_the_whole_libero_route_equals_its_steps(tmp_path):
    """A policy on a checkpoint with upstream's image recipe, against the public functions one after the other."""
    from sb3_tgrpo.openvla import load_openvla, preprocess_libero_image, prompt_token_ids, to_pixel_values
    from sb3_tgrpo.openvla.tiny import tiny_tokenizer_json

    golden = Path(__file__).parents[1] / "golden"
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((golden / "openvla-tiny" / name).read_bytes())
    (tmp_path / "tokenizer.json").write_text(tiny_tokenizer_json())
    with np.load(golden / "libero_preprocess.npz") as data:
        frames, cropped = data["raw_agentview"], data["after_center_crop"]
    space = observation_space(256, suite="libero_spatial", assets="full", assets_by_name=False)
    space = spaces.Dict({"image": spaces.Box(0, 255, (3, 256, 256), np.uint8), "instruction": space["instruction"]})
    policy = make_policy(space=space, checkpoint=tmp_path)
    assert (policy.unnorm_key, policy.gripper) == ("libero_spatial", "libero")
    obs = {"image": np.moveaxis(frames, -1, 1), "instruction": np.stack([encode("Pick up the black bowl")] * 4)}
    actions, _ = policy.predict(obs, deterministic=True)

    model = load_openvla(tmp_path)
    assert np.array_equal(preprocess_libero_image(frames), cropped)
    ids = [prompt_token_ids(model.tokenizer, "pick up the black bowl")] * 4
    tokens, _ = model.generate_action_tokens(to_pixel_values(cropped), ids)
    expected = model.decode_actions(tokens, "libero_spatial")
    expected[:, 6] = np.where(expected[:, 6] > 0.5, -1.0, 1.0)
    np.testing.assert_allclose(actions, np.clip(expected, -1, 1), atol=1e-6)


def test_arguments_are_checked():
    cases = [
        (dict(temperature=0.0), "temperature"),
        (dict(gripper="panda"), "gripper"),
        (dict(lora="all"), "lora"),
        (dict(lora={"lora_dropout": 0.1}), "lora_dropout"),
        (dict(lora={"use_dora": True}), "use_dora"),
        (dict(lora={"bias": "all"}), "bias"),
        (dict(use_sde=True), "use_sde"),
        (dict(vision_cache_mb=-1.0), "vision_cache_mb"),
        (dict(quantization="8bit"), "quantization"),
        (dict(dtype="int8"), "dtype"),
        (dict(unnorm_key="bridge_orig"), "bridge_orig.*action_space"),
        (dict(checkpoint="no/such/folder"), "neither a folder nor a hub id"),
        (dict(checkpoint=None), "checkpoint"),
    ]
    for kwargs, message in cases:
        with pytest.raises(ValueError, match=message):
            make_policy(**kwargs)
    with pytest.raises(ValueError, match="Box"):
        make_policy(action_space=spaces.Discrete(3))
    with pytest.raises(ValueError, match="bounded"):
        make_policy(action_space=spaces.Box(-np.inf, np.inf, (7,)))
    with pytest.raises(ValueError, match="instruction"):
        make_policy(space=spaces.Box(0, 255, (64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match="uint8 RGB"):
        make_policy(space=spaces.Dict({"image": spaces.Box(0, 1, (64, 64, 3)), "instruction": InstructionSpace()}))


def test_image_size_is_checked_when_the_policy_is_built():
    with pytest.raises(ValueError, match="at least 64x64"):
        make_policy(space=observation_space(32))
    golden = Path(__file__).parents[1] / "golden" / "openvla-tiny"
    with pytest.raises(ValueError, match="image_size=256"):
        make_policy(space=observation_space(128), checkpoint=golden, unnorm_key="libero_object")
    policy = make_policy(space=observation_space(256), checkpoint=golden, unnorm_key="libero_object")
    assert policy.model.config.pipeline == "libero" and policy.unnorm_key == "libero_object"


def test_bad_instructions(policy):
    obs = observations(1)
    obs["instruction"] = np.full((1, 256), 0xFF, dtype=np.uint8)
    with pytest.raises(ValueError, match="UTF-8"):
        policy.predict(obs)
    with pytest.raises(ValueError, match="too long"):
        policy.model.prompts([[1] + [300] * 600])
    obs["instruction"] = encode("é" * 128)[None]
    policy.predict(obs)  # 256 bytes of a word the tokenizer has never seen still fit


@pytest.mark.skipif(th.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_asked_for_and_absent():
    with pytest.raises(ValueError, match="no CUDA device"):
        make_policy(device="cuda")
    with pytest.raises((ImportError, ValueError), match=r"bitsandbytes|cuda"):
        make_policy(quantization="4bit")
