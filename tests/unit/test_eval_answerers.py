"""Other models behind the runner: tiny random ones of transformers, a stand-in endpoint, a constant answer."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from PIL import Image

from emma.errors import EmmaError
from emma.eval.answerers import find_answerer
from emma.eval.answering import Question
from emma.eval.runner import evaluate

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
TEXT = {
    "vocab_size": 650,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def tokenizer_with_image(tokenizer):
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.pad_token = "<unk>"
    return tokenizer


def llava(folder, tokenizer):
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = tokenizer_with_image(tokenizer)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    template = (
        "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %} {% endfor %}ASSISTANT:"
    )
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token
        chat_template=template,
    ).save_pretrained(folder)


def blip(folder, tokenizer, instructed):
    import transformers as t

    kind = "InstructBlip" if instructed else "Blip2"
    tokenizer = tokenizer_with_image(tokenizer)
    qformer = {**VISION, "encoder_hidden_size": 16, "vocab_size": 650}
    qformer.pop("image_size"), qformer.pop("patch_size")
    config = getattr(t, f"{kind}Config")(
        vision_config=getattr(t, f"{kind}VisionConfig")(**VISION).to_dict(),
        qformer_config=getattr(t, f"{kind}QFormerConfig")(**qformer).to_dict(),
        text_config=t.OPTConfig(
            vocab_size=650,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=32,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ).to_dict(),
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(0)
    getattr(t, f"{kind}ForConditionalGeneration")(config).save_pretrained(folder)
    images = t.BlipImageProcessor(size={"height": 16, "width": 16})
    parts = {"qformer_tokenizer": tokenizer} if instructed else {}
    getattr(t, f"{kind}Processor")(images, tokenizer, num_query_tokens=4, **parts).save_pretrained(folder)


@pytest.fixture
def pope(tmp_path):
    """Six questions on two pictures, in the three files."""
    folder = tmp_path / "pope"
    (folder / "images").mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (20, 16), ("red", "blue")[i]).save(folder / "images" / f"{i}.jpg")
    for category in ("random", "popular", "adversarial"):
        rows = [
            {"question_id": i + 1, "image": f"{i}.jpg", "text": "Is there a cat?", "label": ("yes", "no")[i]}
            for i in range(2)
        ]
        (folder / f"coco_pope_{category}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("kind", ["llava", "blip2", "instructblip"])
def test_models_of_transformers_run_on_pope(kind, pope, tmp_path, tiny_tokenizer):
    import copy

    folder = tmp_path / "model"
    tokenizer = copy.deepcopy(tiny_tokenizer)
    if kind == "llava":
        llava(folder, tokenizer)
    else:
        blip(folder, tokenizer, instructed=kind == "instructblip")
    answerer = find_answerer(f"hf:{folder}", device="cpu").answerer
    report = evaluate("pope", answerer, pope, tmp_path / "out", batch_size=4, max_new_tokens=4)
    assert report["answers"]["answered"] == 6
    assert report["fingerprint"]["template"] == ("chat template" if kind == "llava" else "prompt as it is")
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert all("Is there" not in row["text"] for row in rows), "new tokens only"
    # one at a time gives the same texts
    again = find_answerer(f"hf:{folder}", device="cpu").answerer
    evaluate("pope", again, pope, tmp_path / "one", batch_size=1, max_new_tokens=4)
    assert (tmp_path / "one" / "predictions.jsonl").read_text() == (tmp_path / "out" / "predictions.jsonl").read_text()


def test_what_is_no_model(tmp_path):
    with pytest.raises(EmmaError, match="hf:nobody/nothing is no folder, and the hub cannot be asked"):
        find_answerer("hf:nobody/nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmmaError, match=r"transformers cannot load|holds no"):
        find_answerer(f"hf:{tmp_path}/empty", device="cpu").answerer.fingerprint()
    with pytest.raises(EmmaError, match="'gguf' is not one of emma, hf, openai, constant"):
        find_answerer("gguf:x")
    with pytest.raises(EmmaError, match="expected openai:URL#MODEL"):
        find_answerer("openai:http://localhost:1/v1")


class Endpoint(BaseHTTPRequestHandler):
    asked: list = []  # noqa: RUF012
    failures = 0

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((body, self.headers.get("Authorization")))
        if Endpoint.failures:
            Endpoint.failures -= 1
            self.send_response(429)
            self.end_headers()
            return
        reply = {"choices": [{"message": {"content": " Yes, a cat.\n"}, "finish_reason": "stop"}]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(reply).encode())

    def log_message(self, *args):
        pass


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    Endpoint.asked, Endpoint.failures = [], 0
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_an_endpoint(endpoint, pope, tmp_path):
    from emma.eval.answerers.openai import OpenAIAnswerer

    Endpoint.failures = 2
    report = evaluate("pope", OpenAIAnswerer(f"{endpoint}#m", wait=0.01), pope, tmp_path / "out", batch_size=3)
    assert report["figures"]["mean_accuracy"]["value"] == 50
    body, key = Endpoint.asked[-1]
    assert body["model"] == "m"
    assert body["max_tokens"] == 128
    picture, text = body["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert text["text"].startswith("Is there a cat?\n")
    assert key == "Bearer secret-key"
    assert not any("secret-key" in file.read_text() for file in (tmp_path / "out").rglob("*") if file.is_file())


def test_an_endpoint_that_stays_busy_is_an_error(endpoint):
    from emma.eval.answerers.openai import ATTEMPTS, OpenAIAnswerer

    Endpoint.failures = 100
    with pytest.raises(EmmaError, match="cannot be asked: HTTP 429"):
        OpenAIAnswerer(f"{endpoint}#m", wait=0.001).answer([Question("1", "hello")], 5)
    assert len(Endpoint.asked) == ATTEMPTS


def test_the_same_answer_to_everything(pope, tmp_path):
    found = find_answerer("constant:Yes")
    report = evaluate("pope", found.answerer, pope, tmp_path / "out")
    assert report["figures"]["mean_accuracy"]["value"] == 50
    assert report["figures"]["mean_f1"]["value"] == pytest.approx(200 / 3)
    assert found.runs.name == "constant-Yes"
