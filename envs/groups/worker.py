"""
One environment, here or in a process of its own, behind the same few commands.

The processes are started as fresh interpreters rather than by ``multiprocessing``: they neither re-import the caller's script
(which would need a ``__main__`` guard around every example) nor inherit its threads and GL contexts.
"""

import copy
import os
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Protocol

import cloudpickle
import gymnasium as gym
import numpy as np

START_TIMEOUT = 300.0
"""
Seconds a new process may take to import its libraries, build its environment and answer the first reset, in which a simulator
may import and build the most (on a busy machine).
"""


class WorkerLostError(RuntimeError):
    """The process of an environment ended, or did not answer in time: raised at every answer until it is started anew."""


class Worker(Protocol):
    """What a :class:`~sb3_tgrpo.envs.groups.SyncGroupVectorEnv` needs of a worker: one command, one answer, in that order."""

    def send(self, command: str, *args: Any) -> None: ...

    def receive(self, timeout: float | None) -> Any: ...

    def restart(self) -> None: ...

    def close(self) -> None: ...


def run_command(env: gym.Env, command: str, args: tuple[Any, ...]) -> Any:
    """Carry out one command on ``env``; shared by both kinds of worker."""
    if command == "step":
        return env.step(*args)
    if command == "reset":
        seed, options = args
        return env.reset(seed=seed, options=options)
    if command == "call":
        name, call_args, call_kwargs = args
        return env.get_wrapper_attr(name)(*call_args, **call_kwargs)
    if command == "get_attr":
        return env.get_wrapper_attr(*args)
    if command == "set_attr":
        return env.set_wrapper_attr(*args)
    if command == "is_wrapped":
        return _is_wrapped(env, *args)
    if command == "describe":
        spaces = copy.deepcopy((env.observation_space, env.action_space))  # whoever seeds them does not seed the environment's
        return *spaces, env.metadata, env.render_mode, env.spec, _running_statistics(env)
    raise ValueError(f"Unknown command {command!r}.")


def _is_wrapped(env: gym.Env, wrapper_class: type) -> bool:
    while isinstance(env, gym.Wrapper):
        if isinstance(env, wrapper_class):
            return True
        env = env.env
    return False


def _running_statistics(env: gym.Env) -> str | None:
    """Name of a wrapper that updates running statistics, such as ``NormalizeReward``."""
    while isinstance(env, gym.Wrapper):
        if getattr(env, "update_running_mean", False):
            return type(env).__name__
        env = env.env
    return None


def _copied(value: Any) -> Any:
    """A copy that shares nothing; the most frequent kinds first, for speed."""
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return value.copy()
    if isinstance(value, (bool, int, float, str, np.generic)) or value is None:
        return value
    if isinstance(value, tuple):
        return tuple([_copied(item) for item in value])
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    return copy.deepcopy(value)


class InProcessWorker:
    """
    The environment in this process: no start-up, and no protection from a crash or a hang. Steps and resets share no array
    and no dictionary with the environment, as if it were in another process.
    """

    def __init__(self, env_fn: Callable[[], gym.Env]) -> None:
        self.env_fn = env_fn
        self.env = env_fn()
        self._pending: tuple[str, tuple[Any, ...]] | None = None

    def send(self, command: str, *args: Any) -> None:
        self._pending = (command, _copied(args) if command in ("step", "reset") else args)

    def receive(self, timeout: float | None) -> Any:
        assert self._pending is not None
        pending, self._pending = self._pending, None
        answer = run_command(self.env, *pending)
        if pending[0] in ("step", "reset") and isinstance(answer, tuple):
            return _copied(answer[0]), *answer[1:-1], _copied(answer[-1])
        return answer

    def restart(self) -> None:
        raise RuntimeError("An environment in this process cannot be lost, so it is never restarted.")

    def close(self) -> None:
        self.env.close()


class WorkerProcess:
    """A process that serves ``n_envs`` environments, one after the other, over a connection each."""

    def __init__(self, n_envs: int = 1) -> None:
        if os.name != "posix":
            raise RuntimeError("Environments in sub-processes need a POSIX system: use subprocess=False here.")
        pairs = [Pipe() for _ in range(n_envs)]
        self._free = [ours for ours, _ in reversed(pairs)]
        self._arrived: dict[Connection, deque[bytes]] = {}  # answers that nobody has asked for yet
        filenos = [theirs.fileno() for _, theirs in pairs]
        # n simulators with n threads each would fight for the cores, those of Mesa's software renderer included.
        environ = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0", **os.environ}
        program = (  # watches the parent before anything that takes long is imported
            f"import sys; sys.path[:] = {sys.path!r}; from sb3_tgrpo.processes import end_with_parent; "
            f"end_with_parent({os.getpid()}); from sb3_tgrpo.envs.groups.worker import serve; serve({filenos!r})"
        )
        command = [sys.executable, "-c", program]
        self.popen = subprocess.Popen(command, pass_fds=filenos, env=environ, stdin=subprocess.DEVNULL)
        for _, theirs in pairs:
            theirs.close()
        self._n_envs = n_envs

    def connect(self) -> Connection:
        """:return: A connection that is still free."""
        connection = self._free.pop()
        self._arrived[connection] = deque()
        return connection

    def receive(self, connection: Connection, timeout: float | None) -> bytes:
        """
        Wait for an answer, and take in those of the other environments meanwhile: a large one that nobody reads would keep the
        process from ever coming to the one that is waited for.

        :param connection: Connection of the environment whose answer is wanted.
        :param timeout: Seconds in which at least one answer must come; None: forever.
        :raises TimeoutError: If none came.
        :raises EOFError, OSError: If the process ended.
        """
        while not self._arrived[connection]:
            others = (other for other in self._arrived if other is not connection and not other.closed)
            ready = wait([connection, *others], timeout)
            if not ready:
                raise TimeoutError
            for sender in ready:
                assert isinstance(sender, Connection)
                try:
                    self._arrived[sender].append(sender.recv_bytes())
                except (EOFError, OSError):
                    if sender is connection:  # the others find out by themselves
                        raise
        return self._arrived[connection].popleft()

    def kill(self) -> None:
        """End it at once, and with it all of its environments."""
        self.popen.kill()
        self.popen.wait()

    def leave(self) -> None:
        """One of its environments is closed; the last one ends the process."""
        self._n_envs -= 1
        if self._n_envs > 0:
            return
        try:
            self.popen.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            pass
        self.kill()


class SubprocessWorker:
    """
    The environment in another process, of its own or shared with others. Sharing takes less memory and keeps caches warmer;
    what ends or hangs the process costs all in it their episodes, and each is then restarted in a process of its own.

    :param env_fn: Function that makes the environment; pickled with cloudpickle, so closures and lambdas will do.
    :param process: Process in which it runs; None: one of its own.
    """

    def __init__(self, env_fn: Callable[[], gym.Env], process: WorkerProcess | None = None) -> None:
        self.pickled = cloudpickle.dumps(env_fn)
        self._request = 0  # number of the latest command; answers to earlier ones (after an interrupt) are dropped
        self._command = "make"
        self._enter(process or WorkerProcess())

    def _enter(self, process: WorkerProcess) -> None:
        self.process, self._connection = process, process.connect()
        self._starting = True
        self._connection.send_bytes(cloudpickle.dumps((0, "make", (self.pickled,))))

    def send(self, command: str, *args: Any) -> None:
        self._request += 1
        self._command = command
        try:
            self._connection.send_bytes(cloudpickle.dumps((self._request, command, args)))
        except OSError:
            pass  # the process is gone: receive() says so

    def receive(self, timeout: float | None) -> Any:
        """
        :param timeout: Seconds to wait for the answer, more if the process is new; None = forever, 0 = not at all, even then.
        :raises WorkerLostError: If the process ended, or did not answer in time (it is killed then).
        :raises Exception: Whatever the environment raised, with its traceback as a note.
        """
        while True:
            patience = max(timeout, START_TIMEOUT) if timeout and self._starting else timeout
            try:
                message = self.process.receive(self._connection, patience)
            except TimeoutError:
                self.process.kill()
                limit = f"within {patience:g} s" if patience else "in time"
                raise WorkerLostError(f"did not answer {limit}") from None
            except (EOFError, OSError) as error:  # OSError: also in the middle of an answer
                if self._connection.closed:
                    raise  # by close(), not by a crash: nothing to restart
                raise WorkerLostError(f"ended unexpectedly, exit status {self.process.popen.wait()}") from error
            request, succeeded, answer = cloudpickle.loads(message)
            if not succeeded and request in (0, self._request):
                raise restored(*answer)
            if request == self._request:
                self._starting = self._starting and self._command != "reset"
                return answer

    def fileno(self) -> int:
        """
        Readable once an answer is there, or the process is gone: for ``multiprocessing.connection.wait``. Not in a shared
        process, whose answers may have been taken in already.
        """
        return self._connection.fileno()

    def restart(self) -> None:
        self.process.kill()
        self._connection.close()
        self._enter(WorkerProcess())

    def close(self) -> None:
        if not self._connection.closed:
            self.send("close")
            self._connection.close()  # first: it may be blocked by a large answer that nobody reads
            self.process.leave()


class WorkerPool:
    """
    Processes kept for the next user of the same environment, since a simulator takes seconds to start. A context manager: at
    the end of the ``with`` block they are closed.

    The same means that the function that makes it pickles to the same bytes, so that no environment is mistaken for another.
    """

    def __init__(self) -> None:
        self._idle: list[SubprocessWorker] = []

    def take(self, env_fn: Callable[[], gym.Env]) -> SubprocessWorker:
        """An idle process with this environment, or a new one."""
        pickled = cloudpickle.dumps(env_fn)
        for worker in self._idle:
            if worker.pickled == pickled:
                self._idle.remove(worker)
                return worker
        return SubprocessWorker(env_fn)

    def give(self, worker: SubprocessWorker) -> None:
        """Keep a process with every command answered; its environment is reset by the next user."""
        self._idle.append(worker)

    def close(self) -> None:
        """End all idle processes."""
        while self._idle:
            self._idle.pop().close()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def serve(filenos: Sequence[int]) -> None:
    """
    Body of a worker process: build environments and answer commands until told to close all or the caller is gone.

    :param filenos: Inherited file descriptors of this side's connections, one per environment.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to handle; it closes us in order
    envs: dict[Connection, gym.Env | None] = {Connection(fileno): None for fileno in filenos}
    try:
        while envs:
            for connection in wait(list(envs)):
                assert isinstance(connection, Connection)
                if not _serve_one(connection, envs):
                    env = envs.pop(connection)
                    if env is not None:
                        env.close()
    finally:
        for env in envs.values():
            if env is not None:
                env.close()


def _serve_one(connection: Connection, envs: dict[Connection, gym.Env | None]) -> bool:
    """Answer one command. Returns False if there will be no other: told to close, or the caller is gone."""
    try:
        request, command, args = cloudpickle.loads(connection.recv_bytes())
        if command == "close":
            return False
        try:
            if command == "make":
                envs[connection], answer = cloudpickle.loads(args[0])(), None
            else:
                env = envs[connection]
                assert env is not None
                answer = run_command(env, command, args)
            reply = cloudpickle.dumps((request, True, answer))
        except BaseException as error:  # also SystemExit, which would end this process without its text
            reply = cloudpickle.dumps((request, False, described(error)))
        connection.send_bytes(reply)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return False
    return True


def described(error: BaseException) -> tuple[str, str, bytes | None]:
    """An exception that is being handled, for :func:`restored`: class and message, traceback, and pickle if there is one."""
    text, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
    try:
        return text, trace, cloudpickle.dumps(error.with_traceback(None))
    except Exception:  # it holds something that can't be pickled, such as a simulator
        return text, trace, None


def restored(text: str, trace: str, pickled: bytes | None) -> Exception:
    """The exception of :func:`described`; a ``RuntimeError`` with its text where its class can't be built from a pickle."""
    error: Any = None
    try:
        error = pickled and cloudpickle.loads(pickled)
    except Exception:  # a constructor that takes other arguments than the message, or a module that only the worker has
        pass
    if not isinstance(error, Exception) or f"{type(error).__name__}: {error}" != text:
        error = RuntimeError(text)
    error.add_note("Traceback in the environment's process:\n" + trace)
    return error
