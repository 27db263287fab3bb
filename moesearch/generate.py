"""python -m moesearch.generate: let a trained model speak."""

from __future__ import annotations

import argparse
import codecs
import math
from collections.abc import Sequence
from pathlib import Path

from moesearch.cli import new_parser, run_command, torch_device

EXAMPLES = """\
  python -m moesearch.generate runs/train/best
  python -m moesearch.generate runs/train/best --prompt "HAMLET:" --tokens 300 --temperature 0.8 --seed 1"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _parse(argv)
    device = torch_device(args.device)
    from moesearch.model.generation import sampled_ids
    from moesearch.training.model_folder import load_model

    trained = load_model(args.folder, device)
    prompt = trained.tokenizer.encode(args.prompt).tolist()
    pieces = trained.tokenizer.pieces
    # A character may come in several tokens; bytes that never make one are replaced.
    text = codecs.getincrementaldecoder("utf-8")(errors="replace")
    print(args.prompt, end="", flush=True)
    for token in sampled_ids(trained.model, prompt, args.tokens, seed=args.seed, temperature=args.temperature):
        print(text.decode(pieces[token]), end="", flush=True)
    print(text.decode(b"", final=True))
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = new_parser("generate", "Let a trained model continue a text.", EXAMPLES)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the folder that train wrote")
    parser.add_argument(
        "--prompt", metavar="TEXT", type=_prompt, default="\n", help="text to continue; default a line break"
    )
    parser.add_argument("--tokens", metavar="N", type=_count, default=500, help="tokens to add; default 500")
    parser.add_argument(
        "--temperature", metavar="X", type=_positive, default=1.0, help="below 1 safer, above 1 wilder; default 1"
    )
    parser.add_argument("--seed", metavar="N", type=_count, default=0, help="another seed, another text; default 0")
    parser.add_argument("--device", metavar="D", default="auto", help="auto (default), cpu, cuda or cuda:1")
    return parser.parse_args(argv)


def _prompt(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty; give some text to continue, or leave --prompt out")
    return text


def _count(text: str) -> int:
    if text.isascii() and text.isdecimal() and int(text) < 2**63:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0")


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


if __name__ == "__main__":
    run_command(main)
