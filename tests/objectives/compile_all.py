"""Compile every variant and compare it with the variant that is not compiled. test_compile.py runs this script.

It is a separate script because Dynamo cannot trace the run-time shape checks that tests enable.
"""

import torch
from torch.testing import assert_close

from tests.objectives.variants import RANDOM, VARIANTS, build, gradients, pairs

if __name__ == "__main__":
    for variant in VARIANTS:
        objective, (images, texts) = build(variant), pairs()
        compiled = torch.compile(objective, backend="aot_eager", fullgraph=not variant.startswith(RANDOM))
        terms = compiled(images, texts)
        assert_close(terms, objective(images, texts))
        torch.stack(list(terms.values())).sum().backward()
        expected = gradients(objective, images, texts)
        for name, leaf in objective.named_parameters():
            assert_close(leaf.grad, expected.get(name))
        for name, leaf in [("images.patches", images.patches), ("texts.tokens", texts.tokens)]:
            if leaf.grad is not None:
                assert_close(leaf.grad, expected[name])
        torch._dynamo.reset()
        print("same when compiled:", variant)
