"""Pictures drawn from pictures with the OpenAI package: INKSTONE_URL and INKSTONE_KEY name a running platform."""

import base64
import io
import os

import openai
import pytest
from PIL import Image, ImageChops, ImageStat

PROMPT = "a 3d dog on a blue background"


@pytest.fixture(scope="module")
def client() -> openai.OpenAI:
    url = os.environ["INKSTONE_URL"] + "/v1"
    return openai.OpenAI(base_url=url, api_key=os.environ["INKSTONE_KEY"], max_retries=0)


@pytest.fixture(scope="module")
def cat(client) -> bytes:
    answer = client.images.generate(prompt="a 3d cat on a yellow background", extra_body={"steps": 12, "seed": 7})
    return base64.b64decode(answer.data[0].b64_json)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def named(data: bytes, name: str = "picture.png"):
    return (name, data, "image/png")


def picture(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


def edit(client, image: bytes, **more) -> bytes:
    ours = {"steps": 12, "seed": 8} | more.pop("extra_body", {})
    answer = client.images.edit(image=named(image), prompt=PROMPT, extra_body=ours, **more)
    return base64.b64decode(answer.data[0].b64_json)


def difference(first: Image.Image, second: Image.Image, box) -> float:
    stat = ImageStat.Stat(ImageChops.difference(first.crop(box), second.crop(box)))
    return sum(stat.mean) / 3


WHOLE, LEFT, RIGHT = (0, 0, 128, 128), (0, 0, 56, 128), (72, 0, 128, 128)


def test_an_edit_begins_from_the_picture_the_more_the_less_its_strength(client, cat):
    near, far = (picture(edit(client, cat, extra_body={"strength": share})) for share in (0.2, 0.9))
    assert near.size == far.size == (128, 128)
    original = picture(cat)
    assert difference(near, original, WHOLE) < difference(far, original, WHOLE)


def test_the_same_edit_is_the_same_file(client, cat):
    assert edit(client, cat) == edit(client, cat) != edit(client, cat, extra_body={"seed": 9})


def test_only_what_the_mask_leaves_open_is_painted_anew(client, cat):
    mask = Image.new("RGBA", (128, 128), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (64, 0, 128, 128))
    edited = picture(edit(client, cat, mask=named(png(mask))))
    original = picture(cat)
    kept, painted = (difference(edited, original, box) for box in (LEFT, RIGHT))
    assert kept < 12 < painted, (kept, painted)


def test_a_picture_of_another_size_is_brought_to_that_of_the_answer(client, cat):
    wide = picture(cat).resize((300, 200))
    assert picture(edit(client, png(wide), size="64x96")).size == (64, 96)
    answer = client.images.edit(image=[named(cat)], prompt=PROMPT, n=2, response_format="url")
    assert len(answer.data) == 2 and answer.data[0].url


def test_a_bad_form_raises_the_packages_own_error_and_names_the_parameter(client, cat):
    opaque = png(Image.new("RGB", (128, 128)))
    small = png(Image.new("RGBA", (64, 64)))
    huge = png(Image.new("L", (5000, 5000)))
    for change, param in [
        ({"image": named(b"not a picture")}, "image"),
        ({"image": named(huge)}, "image"),
        ({"image": [named(cat), named(cat)]}, "image"),
        ({"mask": named(opaque)}, "mask"),
        ({"mask": named(small)}, "mask"),
        ({"mask": named(b"not a picture")}, "mask"),
        ({"prompt": " "}, "prompt"),
        ({"size": "100x100"}, "size"),
        ({"n": 11}, "n"),
        ({"stream": True}, "stream"),
        ({"extra_body": {"strength": 0}}, "strength"),
        ({"extra_body": {"strength": "much"}}, "strength"),
        ({"extra_body": {"steps": 100_000}}, "steps"),
    ]:
        with pytest.raises(openai.BadRequestError) as raised:
            client.images.edit(**({"image": named(cat), "prompt": PROMPT} | change))
        assert raised.value.param == param, (change.keys(), raised.value)


def test_a_form_over_the_limit_is_refused(client):
    noise = Image.frombytes("RGB", (2700, 2700), os.urandom(2700 * 2700 * 3))
    with pytest.raises(openai.APIStatusError) as raised:
        client.images.edit(image=named(png(noise)), prompt=PROMPT)
    assert raised.value.status_code == 413


def test_a_wrong_key_is_an_authentication_error(cat):
    url = os.environ["INKSTONE_URL"] + "/v1"
    stranger = openai.OpenAI(base_url=url, api_key="ink_dev-0000000000_nonsense", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.images.edit(image=named(cat), prompt=PROMPT)
