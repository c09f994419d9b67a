"""The sources hold nothing that runs foreign text, loads code, or opens a connection.

All of it is read from the syntax trees of the package and of tools/: nothing is
imported. What a rule would forbid and is there all the same stands in a list with its
reason, and the list may not outlive its entry.
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# ---------------------------------------------------------------- the rules

# Reading these runs what the file says.
RUNS_WHAT_IT_READS = {
    *("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve"),
    *("joblib", "jsonpickle", "pickletools", "code", "codeop"),
}
RUNS_TEXT = {"eval", "exec", "compile", "__import__"}
RUNS_A_SHELL = {"os.system", "os.popen", "subprocess.getoutput"}
# Calls that load a network as a program, or switch off what guards against that.
LOADS_A_PROGRAM = {"load_model", "saved_model.load", "enable_unsafe_deserialization"}
NETWORK = {
    *("urllib", "urllib3", "requests", "socket", "socketserver", "http", "httplib2"),
    *("httpx", "aiohttp", "ftplib", "smtplib", "poplib", "imaplib", "telnetlib"),
    *("xmlrpc", "websocket", "websockets", "ssl", "grpc", "paramiko", "asyncio"),
    *("tensorflow_hub", "tensorflow_datasets", "kagglehub", "huggingface_hub"),
    *("webbrowser", "pip", "ensurepip"),
}
DOWNLOADS = {"get_file", "urlopen", "urlretrieve", "snapshot_download"}
ARCHIVES = {"tarfile", "zipfile", "gzip", "bz2", "lzma", "zipimport"}
EXTRACTS = {"unpack_archive", "extractall", "extract_all"}
REMOVES_TREES = {"rmtree", "removedirs", "delete_recursively"}

# (file, what) → why it may stand there.
ALLOWED = {
    ("yt8m_distill/data/frame_index.py", "zipfile"): (
        "for the name of its error, which np.load raises; nothing is extracted"
    ),
    ("yt8m_distill/files.py", "rmtree"): (
        "called for folders under a temporary name, for the scratch folder of "
        "checkpoints, and for an export that a new one has replaced"
    ),
    ("yt8m_distill/training/checkpoints.py", "rmtree"): (
        "the scratch folder, of which the files have just been moved away"
    ),
    ("tools/torturing/checkpoints.py", "rmtree"): "copies that it made itself",
    ("tools/torturing/numbers.py", "rmtree"): "a data set that it made itself",
    ("yt8m_distill/classify_records.py", "saved_model.load"): (
        "a client of an exported model, which the user names"
    ),
}

# -------------------------------------------------------------------------------

FILES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for folder in ("yt8m_distill", "tools")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
# Programs around training may start others; the network is closed to all alike, but
# the tools that play several machines have to find free ports of this one.
MAY_USE_SOCKETS = {"tools/torturing/machines.py"}


def roots(tree: ast.AST) -> set[str]:
    """First names of the modules that are imported, also inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
    return found


def imported_by_name(tree: ast.AST) -> set[str]:
    """What `from a import b` brings in: b."""
    return {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def dotted(node: ast.AST) -> str:
    """`tf.io.gfile.rmtree` of an attribute's node; empty for other expressions."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def mentions(tree: ast.AST) -> set[str]:
    """All dotted names: a function that is handed on is as bad as one called."""
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Name | ast.Attribute)]
    return {dotted(node) for node in nodes} | imported_by_name(tree)


def ends_with(name: str, endings: set[str]) -> set[str]:
    return {e for e in endings if name == e or name.endswith(f".{e}")}


def keyword_breaches(tree: ast.AST) -> set[str]:
    """`allow_pickle=`, `shell=` and `safe_mode=` with the dangerous value."""
    dangerous = {"allow_pickle": True, "shell": True, "safe_mode": False}
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        for keyword in node.keywords:
            if keyword.arg in dangerous:
                # A value that is no constant may be the dangerous one.
                value = getattr(keyword.value, "value", dangerous[keyword.arg])
                if value is dangerous[keyword.arg]:
                    found.add(keyword.arg)
    return found


def breaches(source: str) -> set[str]:
    """What a source holds that a rule forbids."""
    tree = ast.parse(source)
    found = roots(tree) & (RUNS_WHAT_IT_READS | NETWORK | ARCHIVES)
    names = mentions(tree)
    # Only as bare names: re.compile and Network.compile are others.
    found |= names & RUNS_TEXT
    for name in names:
        found |= ends_with(name, RUNS_A_SHELL | LOADS_A_PROGRAM)
        found |= ends_with(name, DOWNLOADS | EXTRACTS | REMOVES_TREES)
        if name.startswith("yaml.") and "load" in name:
            found |= set() if name == "yaml.safe_load" else {"yaml.load"}
    return found | keyword_breaches(tree)


@pytest.mark.parametrize("path", FILES)
def test_a_source_holds_nothing_that_is_forbidden(path):
    allowed = {what for where, what in ALLOWED if where == path}
    allowed |= {"socket"} if path in MAY_USE_SOCKETS else set()
    assert not breaches(FILES[path]) - allowed


def test_every_exception_is_still_needed():
    needless = {
        (path, what) for path, what in ALLOWED if what not in breaches(FILES[path])
    }
    needless |= {
        p for p in MAY_USE_SOCKETS if "socket" not in roots(ast.parse(FILES[p]))
    }
    assert not needless


def test_of_the_module_zipfile_only_an_error_is_used():
    names = mentions(ast.parse(FILES["yt8m_distill/data/frame_index.py"]))
    used = {n for n in names if n.startswith("zipfile.")}
    assert used == {"zipfile.BadZipFile"}


@pytest.mark.parametrize(
    "source, found",
    [
        ("import pickle", "pickle"),
        ("from dill import loads", "dill"),
        ("def f():\n  import marshal", "marshal"),
        ("import shelve as s", "shelve"),
        ("eval(text)", "eval"),
        ("map(exec, texts)", "exec"),
        ("compile(text, name, 'exec')", "compile"),
        ("yaml.load(file)", "yaml.load"),
        ("yaml.unsafe_load(file)", "yaml.load"),
        ("np.load(file, allow_pickle=True)", "allow_pickle"),
        ("np.load(file, allow_pickle=flag)", "allow_pickle"),
        ("subprocess.run(text, shell=True)", "shell"),
        ("keras.saving.load_model(p, safe_mode=False)", "safe_mode"),
        ("keras.models.load_model(p)", "load_model"),
        ("tf.saved_model.load(p)", "saved_model.load"),
        ("os.system(text)", "os.system"),
        ("import urllib.request", "urllib"),
        ("from http import client", "http"),
        ("import requests", "requests"),
        ("import socket", "socket"),
        ("tf.keras.utils.get_file(name, url)", "get_file"),
        ("from keras.utils import get_file", "get_file"),
        ("import tarfile", "tarfile"),
        ("from zipfile import ZipFile", "zipfile"),
        ("shutil.unpack_archive(p)", "unpack_archive"),
        ("archive.extractall(p)", "extractall"),
        ("shutil.rmtree(p)", "rmtree"),
        ("tf.io.gfile.rmtree(p)", "rmtree"),
        ("from shutil import rmtree", "rmtree"),
        ("clean = shutil.rmtree", "rmtree"),
    ],
)
def test_a_breach_is_found(source, found):
    assert found in breaches(source)


def test_what_only_looks_alike_is_left_alone():
    source = """
from yt8m_distill import eval
eval.run()
re.compile(text)
network.compile()
ast.literal_eval(text)
yaml.safe_load(file)
np.load(file, allow_pickle=False)
subprocess.run(words, shell=False)
json.load(file)
tf.train.load_checkpoint(prefix)
requests_a_second = 3
"""
    # `eval` is the module here; the rule for bare names cannot tell.
    assert breaches(source) == {"eval"}
