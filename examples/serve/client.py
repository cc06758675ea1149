#!/usr/bin/env python3
"""Asks a server by three clients as they are: client.py IMAGE TASK [ADDRESS]

requests, tritonclient (KServe's and Triton's protocol) and openai (embeddings); those that are not installed are passed over:
pip install requests "tritonclient[http]" openai. VPT_KEY holds the key, if the server wants one.
"""

import base64
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit


def with_requests(server, key, image, task):
    import requests

    session = requests.Session()
    if key:
        session.headers["Authorization"] = f"Bearer {key}"
    answer = session.post(f"{server}/v1/tasks/{task}/predict", data=image, headers={"Content-Type": "image/jpeg"}, timeout=30)
    answer.raise_for_status()
    print("requests:    ", answer.json()[0][:3], "by version", answer.headers["X-Vpt-Task-Version"])
    # Many tasks about one image, here those that are in memory: what they share of it is computed once.
    names = [model["id"] for model in session.get(f"{server}/v1/models", timeout=30).json()["data"] if model.get("loaded")][:5]
    body = {"images": [base64.b64encode(image).decode()], "tasks": names, "top_k": 1}
    answer = session.post(f"{server}/v1/predict", json=body, timeout=30)
    answer.raise_for_status()
    print("requests:    ", answer.json()["results"][0])


def with_tritonclient(server, key, image, task):
    import numpy as np
    import tritonclient.http as triton

    headers = {"Authorization": f"Bearer {key}"} if key else None
    client = triton.InferenceServerClient(urlsplit(server).netloc)
    outputs = [output["name"] for output in client.get_model_metadata(task, headers=headers)["outputs"]]
    asked = triton.InferInput("image", [1], "BYTES")
    asked.set_data_from_numpy(np.array([image], dtype=object))
    answer = client.infer(task, [asked], headers=headers)
    print("tritonclient:", {name: answer.as_numpy(name)[0] for name in outputs})


def with_openai(server, key, image, task):
    import openai

    client = openai.OpenAI(base_url=f"{server}/v1", api_key=key or "none")
    uri = "data:image/jpeg;base64," + base64.b64encode(image).decode()
    embedding = client.embeddings.create(model=task, input=[uri]).data[0].embedding
    print("openai:      ", len(embedding), "values, the first", embedding[:3])


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    image, task, server = Path(sys.argv[1]).read_bytes(), sys.argv[2], (sys.argv[3:] or ["http://127.0.0.1:8484"])[0]
    for ask in (with_requests, with_tritonclient, with_openai):
        try:
            ask(server, os.environ.get("VPT_KEY"), image, task)
        except ModuleNotFoundError as missing:
            print(f"{missing.name} is not installed")


if __name__ == "__main__":
    main()
