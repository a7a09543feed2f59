"""Our model against the upstream model code's outputs for one small checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch as th

from sb3_tgrpo.openvla import load_openvla
from sb3_tgrpo.openvla.config import TowerConfig
from sb3_tgrpo.openvla.model import OpenVLA
from sb3_tgrpo.openvla.vit import VisionTower

GOLDEN = Path(__file__).parents[1] / "golden" / "openvla-tiny"


@pytest.fixture(scope="module")
def io():
    with np.load(GOLDEN / "io.npz") as data:
        return dict(data)


@pytest.fixture
def model() -> OpenVLA:
    return load_openvla(GOLDEN, dtype=th.float32, device="cpu")


@pytest.fixture
def inputs(io):
    return th.from_numpy(io["pixel_values"]).float(), th.from_numpy(io["input_ids"])


def largest_error(got, expected):
    return float(np.abs(got.detach().numpy() - expected).max())


def logits_error(model, io):
    """The largest difference to upstream's logits, of prompt and actions; what the planted bugs below must raise."""
    pixels, ids = th.from_numpy(io["pixel_values"]).float(), th.from_numpy(io["input_ids"])
    with th.no_grad():
        prompt = largest_error(model.prompt_last_logits(pixels, ids), io["prompt_last_logits"])
        forced = model.action_logits(pixels, ids, th.from_numpy(io["generated_ids"]))
    return max(prompt, largest_error(forced, io["teacher_forced_action_logits"]))


def test_features_projector_and_logits(model, io, inputs):
    pixels, _ = inputs
    with th.no_grad():
        features = model.vision_backbone(pixels)
        assert largest_error(features[:, ::16], io["patch_features"]) < 1e-4
        assert largest_error(model.project(pixels)[:, ::16], io["projected"]) < 1e-4
    assert logits_error(model, io) < 1e-4


def test_generated_ids_log_probs_and_actions(model, io, inputs):
    pixels, ids = inputs
    tokens, log_prob = model.generate_action_tokens(pixels, ids)
    assert np.array_equal(tokens.numpy(), io["generated_ids"])
    for suite in ("object", "spatial"):
        np.testing.assert_allclose(model.decode_actions(tokens, f"libero_{suite}"), io[f"actions_{suite}"], atol=1e-6)
    forced = th.from_numpy(io["teacher_forced_action_logits"]).log_softmax(-1)
    expected = forced.gather(2, (tokens - 31744).unsqueeze(-1)).squeeze(-1)
    assert largest_error(log_prob, expected.numpy()) < 1e-4
    # Over all 32064 ids a token is less probable than among the 256 action ids.
    assert (log_prob.numpy() > io["greedy_token_log_probs"]).all()


def test_prompts_of_two_lengths_in_one_batch(model, io, inputs):
    pixels, ids = inputs
    short = th.from_numpy(io["short_input_ids"])
    both = model.prompt_last_logits(pixels[[0, 0]], [ids[0].tolist(), short[0].tolist()])
    assert largest_error(both[:1], io["prompt_last_logits"][:1]) < 1e-4
    assert largest_error(both[1:], io["short_last_logits"]) < 1e-4


def swap_backbones(model, monkeypatch):
    vision = model.vision_backbone
    monkeypatch.setattr(type(vision), "forward", lambda self, x: th.cat([self.fused_featurizer(x[:, 3:])[..., :32],
                        self.featurizer(x[:, :3]), self.fused_featurizer(x[:, 3:])[..., 32:]], dim=2))  # fmt: skip


def run_last_block(model, monkeypatch):
    for tower in (model.vision_backbone.featurizer, model.vision_backbone.fused_featurizer):
        tower.blocks.append(th.nn.Identity())


def tanh_gelu(model, monkeypatch):
    from torch.nn import functional as F

    from sb3_tgrpo.openvla import vit

    class Tanh:
        def __getattr__(self, name):
            return getattr(F, name)

        @staticmethod
        def gelu(x):
            return F.gelu(x, approximate="tanh")

    monkeypatch.setattr(vit, "F", Tanh())


def llama2_epsilon(model, monkeypatch):
    for module in model.language_model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-3


def patches_before_bos(model, monkeypatch):
    monkeypatch.setattr(OpenVLA, "_embed", lambda self, patches, prompts, tokens=None: th.cat(
        [patches, self.language_model.model.embed_tokens(
            prompts.input_ids if tokens is None else th.cat([prompts.input_ids, tokens], 1))], dim=1))  # fmt: skip


def low_precision_rotary(model, monkeypatch):
    rotary = model.language_model.model.rotary_emb
    rotary.inv_freq = rotary.inv_freq.to(th.bfloat16).float()


def positions_from_one_more(model, monkeypatch):
    """A mask one column short drops the first key."""
    original = OpenVLA._positions_and_mask

    def short_mask(self, prompts, length):
        positions, _ = original(self, prompts, length)
        mask = th.ones(length, length, dtype=th.bool).tril()
        mask[1:, 0] = False
        return positions, mask[None, None]

    monkeypatch.setattr(OpenVLA, "_positions_and_mask", short_mask)


def off_by_one_rows(model, monkeypatch):
    rows = slice(model.action_rows.start + 1, model.action_rows.stop + 1)
    monkeypatch.setattr(OpenVLA, "action_rows", property(lambda self: rows))


@pytest.mark.parametrize(
    "plant",
    [swap_backbones, run_last_block, tanh_gelu, llama2_epsilon, patches_before_bos, low_precision_rotary,
     positions_from_one_more, off_by_one_rows],
    ids=lambda function: function.__name__,
)  # fmt: skip
def test_a_planted_bug_is_noticed(plant, model, io, monkeypatch):
    plant(model, monkeypatch)
    assert logits_error(model, io) > 1e-4


def sines(names_and_shapes):
    """Weights of the recorded ViT outputs: element i of tensor k is 0.2 sin(0.37 i + k), plus 1 for scales."""
    state = {}
    for k, (name, shape) in enumerate(names_and_shapes):
        values = 0.2 * th.sin(0.37 * th.arange(int(np.prod(shape)), dtype=th.float64) + k)
        one = name.endswith(("norm1.weight", "norm2.weight", "norm.weight", "scale_factor"))
        state[name] = (values + float(one)).view(shape)
    return state


@pytest.mark.parametrize(
    ("config", "n_tensors", "first", "last", "total", "absolute"),
    [
        (TowerConfig(14, 32, 3, 2, 28, init_values=1e-5, reg_tokens=4), 49,
         [-1.0272648, -3.7334668, -0.43808396, 0.38682458], [1.38342892, 1.72151863], 19.32866162, 214.03029549),
        (TowerConfig(14, 48, 3, 3, 28, mlp_ratio=3.7362, class_token=False, global_pool="map"), 54,
         [1.37625058, -1.05982255, 3.38341378, 2.44045797], [2.15846661, -6.00060567], -19.98123599, 537.55210468),
    ],
)  # fmt: skip
def test_vit_equals_timms_recorded_output(config, n_tensors, first, last, total, absolute):
    tower = VisionTower(config).double()
    shapes = {name: tuple(tensor.shape) for name, tensor in tower.state_dict().items()}
    order = [n for n in ("cls_token", "reg_token", "pos_embed") if n in shapes] + [
        n for n in shapes if not n.endswith(("_token", "pos_embed"))
    ]
    assert len(order) == n_tensors
    tower.load_state_dict(sines([(name, shapes[name]) for name in order]))
    images = th.sin(0.01 * th.arange(3 * 28 * 28, dtype=th.float64)).view(1, 3, 28, 28)
    with th.no_grad():
        features = tower(images)[0]
    np.testing.assert_allclose(features[0, :4], first, atol=1e-7)
    np.testing.assert_allclose(features[3, -2:], last, atol=1e-7)
    assert features.sum().item() == pytest.approx(total, abs=1e-6)
    assert features.abs().sum().item() == pytest.approx(absolute, abs=1e-6)


def test_only_the_last_block_but_one_matters(model, inputs):
    pixels, _ = inputs
    with th.no_grad():
        before = model.project(pixels[:1])
        for tower in (model.vision_backbone.featurizer, model.vision_backbone.fused_featurizer):
            tower.blocks[-1].mlp.fc2.weight.add_(1.0)
            tower.norm.weight.add_(1.0)
        model.vision_backbone.fused_featurizer.attn_pool.kv.weight.add_(1.0)
        assert th.equal(model.project(pixels[:1]), before)
        model.vision_backbone.featurizer.blocks[-2].mlp.fc2.weight.add_(1.0)
        assert not th.equal(model.project(pixels[:1]), before)
