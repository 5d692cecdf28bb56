"""The program that answers a client's questions over one connection, here behind a shell of this machine."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flow.channel import Channel
from flow.conversation import Conversation
from tests.support.processes import wait_until

_PROGRAM = """
import json, os, sys, time
print("Welcome to the cluster!")
for line in sys.stdin:
    time.sleep(1000 * ("slow" in line))
    print(json.dumps({"answer": json.loads(line), "pid": os.getpid()}), flush=True)
"""


@pytest.fixture
def conversation(tmp_path: Path) -> Conversation:
    (tmp_path / "program.py").write_text(_PROGRAM)
    return Conversation(Channel(), f"exec {sys.executable} {tmp_path}/program.py")


def ask(conversation: Conversation, question: object = "x") -> int:
    """The process that answers, rightly."""
    told = conversation.ask(question)
    assert isinstance(told, dict) and told["answer"] == question
    return int(told["pid"])


def test_one_program_answers_all_questions_of_all_threads(conversation: Conversation) -> None:
    questions = [{"n": n, "long": "x" * 200_000} for n in range(20)]
    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(lambda question: ask(conversation, question), questions))) == 1


def test_a_program_that_was_killed_is_started_again(conversation: Conversation) -> None:
    first = ask(conversation)
    os.kill(first, signal.SIGKILL)
    assert ask(conversation) != first


def test_who_is_interrupted_is_not_given_the_answer_later(conversation: Conversation) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    with pytest.raises(KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        conversation.ask("slow")
    signal.signal(signal.SIGALRM, before)
    ask(conversation)


def test_a_forked_process_has_one_of_its_own(conversation: Conversation) -> None:
    first = ask(conversation)
    child = os.fork()
    if child == 0:
        os._exit(int(ask(conversation) == first))
    assert os.waitpid(child, 0)[1] == 0
    assert ask(conversation) == first


def test_the_program_ends_with_the_conversation(conversation: Conversation, tmp_path: Path) -> None:
    own = Conversation(Channel(), f"exec {sys.executable} {tmp_path}/program.py")
    pid = ask(own)
    del own
    gc.collect()
    assert wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_what_is_no_program_is_told_as_how_it_ended() -> None:
    told = Conversation(Channel(), "echo hello; exec no-such-program").ask("x")
    assert isinstance(told, subprocess.CompletedProcess)
    assert told.returncode == 127 and b"no-such-program" in told.stderr


def test_a_program_that_is_not_there_is_sent_and_asked_again(tmp_path: Path) -> None:
    (tmp_path / "starter.py").write_text(
        "import json, sys\n"
        "sys.stdin.readline()\n"
        """print('{"lacks": "program"}', flush=True)\n"""
        "exec(json.loads(sys.stdin.readline()))\n"
    )
    own = Conversation(Channel(), f"exec {sys.executable} {tmp_path}/starter.py", _PROGRAM)
    assert ask(own, "first") == ask(own, "second")


def test_only_a_first_question_that_all_may_see_is_a_word_of_the_program(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "import json, sys\n"
        "for line in sys.argv[1:] or sys.stdin:\n"
        "    print(json.dumps({'asked': json.loads(line), 'words': sys.argv[1:]}), flush=True)\n"
    )
    script = f"exec {sys.executable} -u {tmp_path}/program.py"
    own = Conversation(Channel(), script)
    assert own.ask(["it's", 1], is_public=True) == {"asked": ["it's", 1], "words": ['["it\'s", 1]']}
    assert own.ask("x" * 10_000, is_public=True) == {"asked": "x" * 10_000, "words": []}
    assert Conversation(Channel(), script).ask("secret") == {"asked": "secret", "words": []}
