"""Fine-tunes a BERT by masks alone: its weights stand still, scores choose which of them the new task uses.

Needs transformers. --pretrained takes a name or folder as ``from_pretrained`` does; without it the BERT is a small
random one, which shows the steps and needs no network. The task is made here: sequences of two tokens in turn, of which
15 % are hidden and to be guessed. The head that guesses shares its weight with the word embeddings, so it is excluded
and stays dense; what trains besides masks stops by ``freeze_rest``:

    python examples/masked_finetuning_bert.py
"""

import argparse

import torch
from transformers import BertConfig, BertForMaskedLM

import edgepop_kernels as ek

MASK, LENGTH = 3, 16  # the token that hides, of a vocabulary that is used from 10 on


def batch(size, vocabulary):
    tokens = torch.randint(10, vocabulary, (size, 2)).repeat(1, LENGTH // 2)
    hidden = torch.rand(tokens.shape) < 0.15
    hidden[:, 0] = True  # one at least
    return tokens.masked_fill(hidden, MASK), tokens.masked_fill(~hidden, -100)


def load(pretrained):
    if pretrained:
        return BertForMaskedLM.from_pretrained(pretrained), None
    sizes = dict(vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
    return BertForMaskedLM(BertConfig(**sizes)), "signed_constant"  # random weights want a start that suits masks


@torch.no_grad()
def accuracy(model, vocabulary):
    tokens, targets = batch(256, vocabulary)
    found = model.eval()(input_ids=tokens).logits.argmax(-1)
    model.train()
    return (found == targets)[targets != -100].float().mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", help="name or folder for from_pretrained; a small random BERT if not given")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.manual_seed(0)
    model, init = load(options.pretrained)
    # The decoder's weight is that of the embeddings: masked, it would mask both, and convert refuses it by name.
    ek.convert(model, keep=0.5, init=init, exclude="cls.predictions.decoder", freeze_rest=True)
    summary = ek.summary(model)
    print(f"{len(summary.rows)} layers masked, {summary.kept:,} of {summary.total:,} weights kept")
    print(f"beside the scores {summary.dense:,} values train, {summary.still:,} stand still")

    vocabulary = model.config.vocab_size
    optimizer = ek.optim.ScoreAdamW(model, lr=0.01)
    print(f"before: {accuracy(model, vocabulary):.1%} of hidden tokens right")
    for _ in range(options.steps):
        tokens, targets = batch(32, vocabulary)
        optimizer.zero_grad()
        model(input_ids=tokens, labels=targets).loss.backward()
        optimizer.step()
    print(f"after {options.steps} steps: {accuracy(model, vocabulary):.1%}")
    masks = sum(m.packed_mask().numel() for m in model.modules() if hasattr(m, "packed_mask"))
    print(f"the task is {masks:,} bytes of packed masks")


if __name__ == "__main__":
    main()
