"""A client of pyright-langserver, which asks what an editor asks."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Message = dict[str, Any]
LIMIT = 120  # seconds


class LanguageServer:
    """A running server with one open document."""

    def __init__(self, process: subprocess.Popen[bytes], python: Path, document: Path):
        self.process, self.python, self.uri, self.count = process, python, document.as_uri(), 0
        capabilities = {'workspace': {'configuration': True, 'workspaceFolders': True}}
        folders = [{'uri': document.parent.as_uri(), 'name': 'project'}]
        self.ask('initialize', processId=None, rootUri=None, capabilities=capabilities, workspaceFolders=folders)
        self.send({'method': 'initialized', 'params': {}})
        item = {'uri': self.uri, 'languageId': 'python', 'version': 1, 'text': document.read_text()}
        self.send({'method': 'textDocument/didOpen', 'params': {'textDocument': item}})

    def ask_at(self, method: str, line: int, character: int) -> Any:
        """Return the answer to a request about a position in the document."""
        position = {'line': line, 'character': character}
        return self.ask(f'textDocument/{method}', textDocument={'uri': self.uri}, position=position)

    def ask(self, method: str, **params: Any) -> Any:
        """Return the answer to a request; meanwhile answer the requests of the server."""
        self.count += 1
        self.send({'id': self.count, 'method': method, 'params': params})
        while True:
            message = self.receive()
            if 'method' in message and 'id' in message:
                self.send({'id': message['id'], 'result': self.answer(message)})
            elif message.get('id') == self.count:
                assert 'error' not in message, message
                return message['result']

    def answer(self, request: Message) -> Any:
        """Return the settings that an editor has when the environment is selected."""
        if request['method'] != 'workspace/configuration':
            return None
        settings = {'python': {'pythonPath': str(self.python)}}
        return [settings.get(item.get('section', ''), {}) for item in request['params']['items']]

    def send(self, message: Message) -> None:
        assert self.process.stdin is not None
        body = json.dumps({'jsonrpc': '2.0', **message}).encode()
        self.process.stdin.write(b'Content-Length: %d\r\n\r\n' % len(body) + body)
        self.process.stdin.flush()

    def receive(self) -> Message:
        assert self.process.stdout is not None
        length = 0
        while header := self.process.stdout.readline().strip():
            name, _, value = header.partition(b':')
            length = int(value) if name.lower() == b'content-length' else length
        assert length, 'The language server ended without an answer.'
        message: Message = json.loads(self.process.stdout.read(length))
        return message


@contextmanager
def language_server(python: Path, document: Path) -> Iterator[LanguageServer]:
    """Run a server that is told to use an environment, for at most ``LIMIT`` seconds."""
    command = [sys.executable, '-m', 'pyright.langserver', '--stdio']
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=document.parent) as process:
        timer = threading.Timer(LIMIT, process.kill)
        timer.start()
        try:
            server = LanguageServer(process, python, document)
            yield server
            server.ask('shutdown')
            server.send({'method': 'exit'})
        finally:
            timer.cancel()
            process.kill()
