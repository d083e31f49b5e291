"""Damage to chat templates: removed passages and inserted pieces of the template language."""

from __future__ import annotations

from random import Random

PIECES = (
    *("{%", "%}", "{{", "}}", "{#", "#}", "{%- endfor %}", "{%- endif %}", "{% raw %}"),
    *("{% for x in range(99999999) %}", "{% for x in y recursive %}", "{% set a = [] %}"),
    *("{% include 'a' %}", "{% import 'a' as b %}", "{% extends 'a' %}", "{% macro a() %}"),
    *("{{ raise_exception('a\nb') }}", "{{ 1 / 0 }}", "{{ x.y.z }}", "{{ messages.append(1) }}"),
    *("{% generation %}", "| tojson", "| length", "| int", "[0]", "['content']", ".__class__"),
    *("loop.index", "strftime_now('%Y')", "'x' * 99999", "not ", " is string", "(" * 60, "\ud7ff"),
)


def damage_template(data: bytes, seed: int) -> bytes:
    """Change one to three positions of a template.

    Args:
        data: the template.
        seed: determines positions and changes.
    """
    text, random = data.decode("utf-8", "ignore"), Random(seed)
    for _ in range(random.randint(1, 3)):
        begin = random.randint(0, len(text))
        end = min(len(text), begin + random.choice((0, 0, 1, 3, 20)))
        text = text[:begin] + random.choice((*PIECES, "")) + text[end:]
    return text.encode("utf-8", "ignore")
