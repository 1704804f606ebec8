"""The losses of fine-tuning as the papers write them: loops over rows and columns of plain lists, float64.

`student` has the four sides of one batch, `frozen` those of all pairs, each a list of rows; `rows` says which pairs the
batch's are. Sides: S, U safe and unsafe captions; V, G safe and unsafe pictures.
"""

from __future__ import annotations

import math
from typing import NamedTuple

SCALE = math.exp(4.6052)


class Sides(NamedTuple):
    S: list
    U: list
    V: list
    G: list


def cosine(a, b):
    norms = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / norms


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def distance(a, b):
    return mean(1 - cosine(x, y) for x, y in zip(a, b, strict=True))


def cross_entropy(a, b):
    """Mean over i of −log softmax_j(scale · cos(a_i, b_j)) at j = i."""
    losses = []
    for i, row in enumerate(a):
        total = sum(math.exp(SCALE * cosine(row, other)) for other in b)
        losses.append(math.log(total) - SCALE * cosine(row, b[i]))
    return mean(losses)


def clip_loss(a, b):
    return (cross_entropy(a, b) + cross_entropy(b, a)) / 2


def relative(moved, away, towards):
    return mean(
        math.log(1 + math.exp(cosine(x, a) - cosine(x, t))) for x, a, t in zip(moved, away, towards, strict=True)
    )


def at(side, rows):
    return [side[row] for row in rows]


def safe_clip(student, frozen, rows):
    s0, v0 = at(frozen.S, rows), at(frozen.V, rows)
    return {
        "keep_safe_text": distance(student.S, s0),
        "keep_safe_image": distance(student.V, v0),
        "redirect_unsafe_text": distance(student.U, s0),
        "redirect_unsafe_image": distance(student.G, v0),
        "match_safe_text": clip_loss(student.S, v0),
        "match_safe_image": clip_loss(student.V, s0),
        "match_unsafe_text": clip_loss(student.U, v0),
        "match_unsafe_image": clip_loss(student.G, s0),
    }


def nearest(queries, candidates):
    found = []
    for query in queries:
        best = 0
        for row, candidate in enumerate(candidates):
            if cosine(query, candidate) > cosine(query, candidates[best]):
                best = row
        found.append(best)
    return found


def safer_clip(student, frozen, rows, targets):
    """`targets`: pair -> the pair that it is redirected to."""
    t_hat = [frozen.S[targets[row]] for row in rows]
    v_hat = [frozen.V[targets[row]] for row in rows]
    kept = safe_clip(student, frozen, rows)
    return {name: kept[name] for name in kept if "_safe_" in name} | {
        "relative_unsafe_text": relative(student.U, at(frozen.G, rows), v_hat),
        "relative_unsafe_image": relative(student.G, at(frozen.U, rows), t_hat),
        "redirect_unsafe_text": distance(student.U, t_hat),
        "redirect_unsafe_image": distance(student.G, v_hat),
    }


def shield_clip(student, frozen, rows, text_labels, image_labels):
    """`text_labels`, `image_labels`: pair -> "safe" or "unsafe"."""
    here = range(len(rows))
    bad_text = [i for i in here if text_labels[rows[i]] == "unsafe"]
    bad_image = [i for i in here if image_labels[rows[i]] == "unsafe"]
    good_text = [i for i in here if i not in bad_text]
    good_image = [i for i in here if i not in bad_image]
    both = [i for i in bad_text if i in bad_image]
    s0, u0, v0, g0 = (at(side, rows) for side in frozen)

    def halves(text, image):
        return (text + image) / 2

    def moved(side, target, which):
        return distance(at(side, which), at(target, which))

    def matched(side, other, which):
        return clip_loss(at(side, which), at(other, which))

    return {
        "preserve_real": halves(distance(student.S, s0), distance(student.V, v0)),
        "preserve_generated_safe": halves(moved(student.U, u0, good_text), moved(student.G, g0, good_image)),
        "redirect": halves(moved(student.U, s0, bad_text), moved(student.G, v0, bad_image)),
        "mixed": halves(matched(student.U, student.V, bad_text), matched(student.G, student.S, bad_image)),
        "coherence": matched(student.U, student.G, both),
    }
