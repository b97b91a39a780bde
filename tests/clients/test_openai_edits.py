"""Pictures drawn from pictures with the OpenAI package: INKSTONE_URL and INKSTONE_KEY name a running platform.

It may fetch from 127.0.0.1, and from nowhere else that is not public; INKSTONE_TEST_TLS names a folder with `cert.pem` and `key.pem` of a
server there whose certificate it trusts.
"""

import base64
import contextlib
import http.server
import io
import os
import ssl
import threading

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
        ({"stream": True, "n": 2}, "n"),
        ({"extra_body": {"markup": "x"}}, "markup"),
        ({"extra_body": {"strength": 0}}, "strength"),
        ({"extra_body": {"strength": "much"}}, "strength"),
        ({"extra_body": {"steps": 100_000}}, "steps"),
    ]:
        with pytest.raises(openai.BadRequestError) as raised:
            client.images.edit(**({"image": named(cat), "prompt": PROMPT} | change))
        assert raised.value.param == param, (change.keys(), raised.value)


@pytest.mark.parametrize("count", [2, 16])
def test_several_pictures_are_refused_with_the_limit_however_they_are_sent(client, cat, count):
    # The package sends a list as image[], each in a part of its own.
    with pytest.raises(openai.BadRequestError) as form:
        client.images.edit(image=[named(cat)] * count, prompt=PROMPT)
    with pytest.raises(openai.BadRequestError) as json:
        edit_json(client, images=[{"image_url": data_url(cat)}] * count)
    for raised, param in [(form, "image"), (json, "images")]:
        assert raised.value.param == param, raised.value
        assert (raised.value.type, raised.value.code) == ("invalid_request_error", "invalid_argument")
        assert f"1 picture, not {count}" in raised.value.message, raised.value


def test_partial_images_of_an_edit_are_streamed_and_the_last_event_is_the_picture(client, cat):
    ours = {"steps": 30, "seed": 8, "strength": 0.9}
    request = {"image": [named(cat)], "prompt": PROMPT, "extra_body": ours}
    events = list(client.images.edit(stream=True, partial_images=2, **request))
    *partial, last = events
    assert partial and {event.type for event in partial} == {"image_edit.partial_image"}
    assert [event.partial_image_index for event in partial] == sorted(event.partial_image_index for event in partial)
    assert picture(base64.b64decode(partial[0].b64_json)).size == (128, 128)
    assert last.type == "image_edit.completed" and last.usage.total_tokens == 0
    assert last.b64_json == client.images.edit(**request).data[0].b64_json


@contextlib.contextmanager
def served(answer, tls: bool = False):
    """A server at 127.0.0.1 that answers each GET with what `answer(path)` gives: status, headers, body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status, headers, body = answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if tls:
            folder = os.environ["INKSTONE_TEST_TLS"]
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(f"{folder}/cert.pem", f"{folder}/key.pem")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


def edit_json(client, **body) -> bytes:
    """An edit whose pictures JSON names. The package has no method for it, so it is sent as its methods send theirs."""
    ours = {"prompt": PROMPT, "steps": 12, "seed": 8}
    answer = client.post("/images/edits", cast_to=openai.types.ImagesResponse, body=ours | body)
    return base64.b64decode(answer.data[0].b64_json)


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def test_json_names_pictures_by_data_url_and_draws_what_the_form_draws(client, cat):
    assert edit_json(client, images=[{"image_url": data_url(cat)}]) == edit(client, cat)
    mask = Image.new("RGBA", (128, 128), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (64, 0, 128, 128))
    masked = edit_json(client, images=[{"image_url": data_url(cat)}], mask={"image_url": data_url(png(mask))})
    assert masked == edit(client, cat, mask=named(png(mask)))


@pytest.mark.parametrize("tls", [False, True])
def test_json_names_pictures_by_the_url_of_a_server_and_draws_what_the_form_draws(client, cat, tls):
    headers = {"content-type": "image/png", "content-length": str(len(cat))}
    with served(lambda _: (200, headers, cat), tls) as (url, asked):
        assert edit_json(client, images=[{"image_url": url + "/cat.png?signed=1"}]) == edit(client, cat)
    assert asked == ["/cat.png?signed=1"]


def refused(client, url: str) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as raised:
        edit_json(client, images=[{"image_url": url}])
    assert raised.value.param == "images", raised.value
    assert "images[0].image_url" in raised.value.message, raised.value
    return raised.value


def test_pictures_are_not_fetched_from_inside(client, cat):
    with served(lambda _: (200, {}, cat)) as (url, asked):
        port = url.rsplit(":", 1)[1]
        for host in ["127.0.0.2", "127.1.2.3", "2130706434", "0x7f.0.0.2", "[::1]", "[::ffff:7f00:2]", "0.0.0.0", "10.0.0.1",
                     "169.254.169.254", "192.168.0.1", "[fd00:ec2::254]", "[fe80::1]", "[64:ff9b::7f00:2]"]:
            assert "not at a public address" in refused(client, f"http://{host}:{port}/").message, host
        assert asked == []
    with served(lambda _: (302, {"location": "http://169.254.169.254/latest/meta-data/"}, b"")) as (url, asked):
        assert "redirects are not followed" in refused(client, url + "/").message
        assert asked == ["/"]


def test_what_is_no_url_or_gives_no_picture_is_refused_with_the_reason(client):
    for url, says in [
        ("ftp://127.0.0.1/x", "must begin with https://"),
        ("file:///etc/passwd", "must begin with https://"),
        ("http://user:word@127.0.0.1/", "user name"),
        ("http://127.0.0.1:22/", "port"),
        ("cat.png", "must be a URL"),
        ("data:image/png,x", "base64"),
        ("data:image/png;base64,!", "base64"),
        (data_url(b"no picture"), "PNG, JPEG or WebP"),
        (data_url(png(Image.new("L", (5000, 5000)))), "more than"),
    ]:
        assert says in refused(client, url).message, url
    long = 16 * 1024 * 1024 + 1
    answers = {
        "/missing": (404, {}, b""),
        "/announced": (200, {"content-length": str(long)}, b""),
        "/sent": (200, {}, bytes(long)),
        "/text": (200, {"content-type": "image/png"}, b"<html>"),
    }
    with served(lambda path: answers[path]) as (url, _):
        for path, says in [("/missing", "404"), ("/announced", "at most"), ("/sent", "at most"), ("/text", "PNG")]:
            assert says in refused(client, url + path).message, path


def test_a_bad_reference_names_its_parameter(client, cat):
    one = {"image_url": data_url(cat)}
    for body, param in [
        ({}, "images"),
        ({"images": []}, "images"),
        ({"images": [one, one]}, "images"),
        ({"images": [{"file_id": "file-1"}]}, "images"),
        ({"image": data_url(cat)}, "image"),
        ({"images": [one], "mask": {"file_id": "file-1"}}, "mask"),
        ({"images": [one], "mask": one}, "mask"),
        ({"images": [one], "size": "100x100"}, "size"),
    ]:
        with pytest.raises(openai.BadRequestError) as raised:
            edit_json(client, **body)
        assert raised.value.param == param, (body.keys(), raised.value)


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
