"""Small accidents: what a hand, an editor, a disk or an attacker does to a file."""

from __future__ import annotations

import random

_NUMBERS = (
    "-1",
    "0",
    "-0",
    "1e400",
    "-1e400",
    ".nan",
    "-.inf",
    "99999999999999999999",
    "1" * 400,
    "1_0",
    "0x10",
    "1e-400",
)
_WORDS = (
    "",
    "~",
    "true",
    "no",
    "'8'",
    "[]",
    "{}",
    "null",
    "é",
    "a" * 300,
    "../..",
    "/etc/passwd",
    ".",
    "a b",
    "<script>",
)
_SYNTAX = (
    "[[",
    "}",
    ":",
    "? ",
    "|",
    ">",
    "- ",
    "\t",
    "\0",
    "\\",
    '"',
    "\u2028",
    "\x1b[0m",
    "---",
    "...",
    "%YAML 1.1",
    "#",
)
_YAML = (
    "&a",
    "*a",
    "&a [*a]",
    "<<: *a",
    "!!python/name:os.system",
    "!!python/object/apply:os.abort []",
    "!!binary aGk=",
)
_FIELDS = (
    *("moe", "moe.topk", "moe.top_k", "seed", "budget.tokens", "data.order_seed", "data: { text: /dev/zero }"),
    *("name: ../up", "num_trials: -4", "search: {}", "{ type: int, low: 2, high: 1 }", "{ type: float, low: .nan }"),
)
NASTY = (*_NUMBERS, *_WORDS, *_SYNTAX, *_YAML, *_FIELDS)


def spoil_text(text: str, draw: random.Random) -> bytes:
    """A text after one to three accidents to its lines and words, now and then one to its bytes."""
    for _ in range(draw.randint(1, 3)):
        text = _one_accident(text, draw)
    content = text.encode("utf-8", "surrogatepass")
    return spoil_bytes(content, draw) if draw.random() < 0.1 else content


def _one_accident(text: str, draw: random.Random) -> str:
    lines = text.splitlines(keepends=True) or [""]
    line = draw.randrange(len(lines))
    start = draw.randrange(len(text) + 1)
    match draw.randrange(6):
        case 0:
            del lines[line]
        case 1:
            lines.insert(line, lines[line])
        case 2:
            words = lines[line].split(" ")
            words[draw.randrange(len(words))] = draw.choice(NASTY)
            lines[line] = " ".join(words)
        case 3:
            return text[:start] + draw.choice(NASTY) + text[start:]
        case 4:
            return text[:start] + text[start + draw.randint(1, 40) :]
        case _:
            draw.shuffle(lines)
    return "".join(lines)


def spoil_bytes(content: bytes, draw: random.Random) -> bytes:
    """Bytes after one accident: flipped bits, a lost end, lost or foreign parts, or something else altogether."""
    spoilt = bytearray(content)
    start = draw.randrange(len(spoilt) + 1)
    match draw.randrange(6):
        case 0:
            for _ in range(draw.randint(1, 8)):
                if spoilt:
                    spoilt[draw.randrange(len(spoilt))] ^= 1 << draw.randrange(8)
        case 1:
            del spoilt[start:]
        case 2:
            del spoilt[start : start + draw.randint(1, 64)]
        case 3:
            spoilt[start:start] = draw.randbytes(draw.randint(1, 64))
        case 4:
            spoilt[start:] = bytes(len(spoilt) - start)
        case _:
            return draw.choice((b"", b"\0", b"{}", b"[]", b"null", b"\xff\xfe", draw.randbytes(draw.randint(1, 400))))
    return bytes(spoilt)


def yaml_soup(draw: random.Random, depth: int = 0) -> str:
    """A flow document with anchors, aliases, merges, tags and doubled keys, most of it well formed."""
    anchor = draw.choice(("", "", "", f"&{draw.choice('ab')} ", "!!map ", "!t ", "!!python/tuple "))
    match draw.randrange(5 if depth < 4 else 2):
        case 0:
            return draw.choice(NASTY)
        case 1:
            return draw.choice(("*a", "*b", "3", "x", '"x"', "1e3"))
        case 2:
            return f"{anchor}[{', '.join(yaml_soup(draw, depth + 1) for _ in range(draw.randrange(4)))}]"
        case _:
            keys = (
                *("name", "num_trials", "base", "search", "run", "enqueue", "trial", "moe", "top_k", "<<"),
                yaml_soup(draw, 4),
            )
            pairs = (f"{draw.choice(keys)}: {yaml_soup(draw, depth + 1)}" for _ in range(draw.randrange(5)))
            return f"{anchor}{{ {', '.join(pairs)} }}"


def bomb(draw: random.Random) -> str:
    """A document that grows without end, or nearly, for a reader that expands or descends it."""
    levels = draw.randint(5, 40)
    match draw.randrange(4):
        case 0:  # aliases of aliases: ten to the power of the levels
            lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels))]
            return "\n".join(lines)
        case 1:  # the same by merges
            lines = [
                "a0: &a0 { x: 1 }",
                *(f"a{n}: &a{n} {{ <<: [*a{n - 1}, *a{n - 1}], y{n}: 1 }}" for n in range(1, levels)),
            ]
            return "\n".join(lines)
        case 2:
            return "[" * (levels * draw.choice((1, 30, 2000)))
        case _:
            return "base: &a\n  model: *a\n" * draw.randint(1, 3)
