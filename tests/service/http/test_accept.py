"""Content negotiation, as RFC 9110 has it."""

import pytest

from service.http.accept import choose

OFFERED = ("image/png", "application/json")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", "image/png"),
        ("*/*", "image/png"),
        ("image/*", "image/png"),
        ("image/png", "image/png"),
        ("IMAGE/PNG", "image/png"),
        ("application/json", "application/json"),
        ("application/*", "application/json"),
        ("application/json, image/png", "image/png"),
        ("image/png;q=0.5, application/json", "application/json"),
        ("image/png; q=0.5 , application/json; q=0.6", "application/json"),
        ("application/json;charset=utf-8;q=0.9, */*;q=0.1", "application/json"),
        ("text/html, image/avif, image/webp, image/*, */*;q=0.8", "image/png"),
        ("image/png;q=0, */*", "application/json"),
        ("image/*;q=0.2, image/png;q=0.9, application/json;q=0.5", "image/png"),
        ("image/png;q=high, application/json", "application/json"),
        ("image/png;q=2, application/json", "application/json"),
        ("nonsense, application/json", "application/json"),
        ("text/html", None),
        ("image/webp", None),
        ("*/*;q=0", None),
        ("image/png;q=nan", "image/png"),
        ("nonsense", "image/png"),
    ],
)
def test_the_preferred_type_is_chosen(accept, chosen):
    assert choose(accept, OFFERED) == chosen
