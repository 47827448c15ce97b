"""Models as graphs, compiled and exported: the variants of `test_models_common.py` whose forward passes differ in code."""

import pytest
import torch
from test_models_common import ARCHITECTURES, batch, build, masks

# A graph takes 15 to 40 s. The variants that are left out run no line that none of the others runs.
SAME_CODE = {
    "mbt-audio-first-early": "mbt-video-first-mean with the streams in the other order",
    "mbt-late": "the layers before the fusion of mbt",
    "lavish": "lavish-vggish, with slots that add nothing as in lavish-audio-only",
    "lavish-built-in": "lavish-vggish without VGGish, and the head of lavish-videomae",
    "lavish-swin": "lavish-segmentation, which has a Swin-V2, and the head of lavish-videomae",
    "segment-net": "a model of the tests alone",
    "segment-net-audio-only": "a model of the tests alone",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.by_default("mbt", "avmae-mid-fusion", "lavish-vggish"),
    pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in SAME_CODE]),
]


@torch.no_grad()
def test_compiles_to_one_graph(name):
    model = build(name)
    inputs = batch(model, 2)
    # Graph capture is what is at stake; the code generator behind it needs a C++ compiler and minutes. Without a mask,
    # the test of export traces the same operators, so only the capture is repeated.
    for backend, arguments in (("eager", inputs), ("aot_eager", {**inputs, "modality_mask": masks(model)[[0, -1]]})):
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(**arguments).logits, model(**arguments).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_exports_with_a_dynamic_batch(name):
    model = build(name)
    size = torch.export.Dim("batch", min=2, max=64)
    inputs = batch(model, 3)
    exported = torch.export.export(model, (), inputs, dynamic_shapes={key: {0: size} for key in inputs}, strict=False)
    program = exported.module()
    for count in (2, 5):
        other = batch(model, count, seed=count)
        torch.testing.assert_close(program(**other).logits, model(**other).logits, rtol=1e-5, atol=1e-5)
