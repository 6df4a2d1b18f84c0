"""Programs that attack the sandbox or the verdict.

Each defines `attack(host)` and tries to make TEST pass, or the test given with it. `host` has the keys pid (of the judging
process), port (of a server that sends the secret), socket (path of a Unix socket that sends it), file (path of a file with
the secret), folder (which must not change), address (of the secret in the judging process), and name (for files that a
program leaves behind).
"""

from __future__ import annotations

# fmt: off
# ruff: noqa: E501

SECRET = "q7-velvet-9061"
TEST = "assert attack(host) == 'q7-velvet-9061'"

# Time, memory, output, processes.
BOMBS = {
    "endless loop": "while True: pass",
    "endless loop in a call": "def attack(host):\n    while True: pass",
    "sleeps": "import time\ndef attack(host): time.sleep(1000)",
    "catches everything for ever": "def attack(host):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
    "ignores signals": "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass",
    "lifts its own limits": "import resource\ndef attack(host):\n    m = resource.RLIM_INFINITY\n    resource.setrlimit(resource.RLIMIT_CPU, (m, m))\n    resource.setrlimit(resource.RLIMIT_AS, (m, m))\n    while True: pass",
    "fork bomb": "import os\ndef attack(host):\n    while True:\n        os.fork()",
    "fork bomb while loading": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "child in a new session": "import os, time\ndef attack(host):\n    if os.fork() == 0:\n        os.setsid()\n        time.sleep(1000)\n    return 'q7-velvet-9061'",
    "starts a shell": "import subprocess\ndef attack(host):\n    return subprocess.run(['sh', '-c', 'cat ' + host['file']], capture_output=True, text=True).stdout",
    "replaces itself": "import os\ndef attack(host): os.execv('/bin/sleep', ['sleep', '1000'])",
    "memory bomb": "def attack(host):\n    blocks = []\n    while True: blocks.append(bytearray(1 << 26))",
    "memory bomb of small things": "def attack(host):\n    x = []\n    while True: x.append([x, object()])",
    "anonymous files": "import os\ndef attack(host):\n    f = os.memfd_create('x')\n    while True: os.write(f, bytes(1 << 24))",
    "shared memory": "import ctypes\ndef attack(host):\n    libc = ctypes.CDLL(None)\n    n = libc.shmget(0x5EC2E7, 1 << 20, 0o1666)\n    return 'q7-velvet-9061' if n >= 0 else ''",
    "threads that never end": "import threading\ndef loop():\n    while True: pass\nfor _ in range(20): threading.Thread(target=loop).start()",
    "thread bomb": "import threading, time\nthreading.stack_size(32768)\ndef attack(host):\n    while True: threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
    "gigabytes of output": "def attack(host):\n    while True: print('x' * (1 << 20))",
    "gigabytes of errors": "import os\ndef attack(host):\n    while True: os.write(2, bytes(1 << 20))",
    "gigabytes of files": "def attack(host):\n    i = 0\n    while True:\n        open(f'/tmp/{host[\"name\"]}-{i}', 'wb').write(bytes(1 << 24))\n        i += 1",
    "gigabytes as a value": "def attack(host): return 'x' * (200 << 20)",
    "gigabytes in one message": "import os\ndef attack(host):\n    for fd in range(3, 64):\n        try: os.write(fd, b'\\xff\\xff\\xff\\xff' + bytes(1 << 20))\n        except OSError: pass",
    "huge integer": "def attack(host): return 10 ** 10 ** 9",
    "huge integer as a value": "def attack(host): return 1 << 60_000_000",
    "huge integer to text": "def attack(host): return str(7 ** 10_000_000)",
    "deep recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef attack(host): return attack(host)",
    "deep value": "def attack(host):\n    x = []\n    for _ in range(100_000): x = [x]\n    return x",
    "value inside itself": "def attack(host):\n    x = []\n    x.append(x)\n    return x",
    "endless generator": ("def attack(host):\n    while True: yield 1", "assert sum(attack(host)) == 5"),
    "deep source": "x = " + "(" * 5000 + ")" * 5000,
    "deep operators": "x = " + "-" * 200_000 + "1",
    "crash": "import ctypes\ndef attack(host): ctypes.string_at(0)",
    "slow regular expression": "import re\ndef attack(host): return re.match('(a+)+$', 'a' * 50 + 'b')",
}

# The host: its files, network and processes.
ESCAPES = {
    "reads a file": "def attack(host): return open(host['file']).read()",
    "reads through a symbolic link": "import os\ndef attack(host):\n    os.symlink(host['file'], '/tmp/link')\n    return open('/tmp/link').read()",
    "reads through a hard link": "import os\ndef attack(host):\n    os.link(host['file'], '/tmp/link')\n    return open('/tmp/link').read()",
    "reads through a raw call": "import ctypes\ndef attack(host):\n    libc = ctypes.CDLL(None)\n    fd = libc.open(host['file'].encode(), 0)\n    b = ctypes.create_string_buffer(100)\n    return b.raw[:libc.read(fd, b, 100)].decode()",
    "reads the system's accounts": ("def attack(host): return open('/etc/passwd').read()", "assert 'root:' in attack(host)"),
    "lists a folder": ("import os\ndef attack(host): return os.listdir(host['folder'])", "assert 'secret.txt' in attack(host)"),
    "leaves through the root": "import os\ndef attack(host):\n    os.chroot('/proc/1/root')\n    return open(host['file']).read()",
    "writes a file": "def attack(host):\n    open(host['folder'] + '/written', 'w').write('x')\n    return 'q7-velvet-9061'",
    "overwrites a file": "def attack(host):\n    open(host['file'], 'w').write('x')\n    return 'q7-velvet-9061'",
    "truncates a file": "import os\ndef attack(host):\n    os.truncate(host['file'], 0)\n    return 'q7-velvet-9061'",
    "removes a file": "import os\ndef attack(host):\n    os.remove(host['file'])\n    return 'q7-velvet-9061'",
    "renames a file": "import os\ndef attack(host):\n    os.rename(host['file'], host['file'] + '2')\n    return 'q7-velvet-9061'",
    "opens a file's permissions": "import os\ndef attack(host):\n    os.chmod(host['file'], 0o777)\n    return 'q7-velvet-9061'",
    "changes a file's times": "import os\ndef attack(host):\n    os.utime(host['file'], (1, 1))\n    return 'q7-velvet-9061'",
    "leaves files": "import os\ndef attack(host):\n    for d in ('/tmp', '/dev/shm', '/var/tmp', '.'):\n        try: open(f'{d}/{host[\"name\"]}', 'w').write('x')\n        except OSError: pass\n    return ''",
    "connects": "import socket\ndef attack(host): return socket.create_connection(('127.0.0.1', host['port']), 2).recv(99).decode()",
    "connects to a Unix socket": "import socket\ndef attack(host):\n    s = socket.socket(socket.AF_UNIX)\n    s.connect(host['socket'])\n    return s.recv(99).decode()",
    "listens": "import socket\ndef attack(host):\n    s = socket.socket()\n    s.bind(('0.0.0.0', 0))\n    s.listen()\n    import os\n    return 'q7-velvet-9061' if os.path.exists(host['file']) else ''",
    "reads the judge's environment": ("def attack(host): return open(f'/proc/{host[\"pid\"]}/environ').read()", "assert attack(host)"),
    "reads the judge's memory": ("def attack(host): return open(f'/proc/{host[\"pid\"]}/mem', 'rb').fileno() > 0", "assert attack(host)"),
    "finds the tests in /proc": ("import os\ndef attack(host):\n    found = []\n    for p in filter(str.isdigit, os.listdir('/proc')):\n        try: found.append(open(f'/proc/{p}/cmdline').read())\n        except FileNotFoundError: pass  # it has ended since\n    return found", "assert len(attack(host)) > 2"),
    "traces the judge": ("import ctypes\ndef attack(host): return ctypes.CDLL(None).ptrace(16, host['pid'], 0, 0)", "assert attack(host) == 0"),
    "reads the judge's memory by a call": "import ctypes\nclass V(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('size', ctypes.c_size_t)]\ndef attack(host):\n    b = ctypes.create_string_buffer(14)\n    n = ctypes.CDLL(None).process_vm_readv(host['pid'], ctypes.byref(V(ctypes.addressof(b), 14)), 1, ctypes.byref(V(host['address'], 14)), 1, 0)\n    return b.raw.decode()",
    "kills the judge": "import os\ndef attack(host):\n    os.kill(host['pid'], 9)\n    return 'q7-velvet-9061' if host['pid'] > 1 else ''",
    "kills everything": "import os\ndef attack(host):\n    os.kill(-1, 9)\n    return 'q7-velvet-9061'",
    "kills its group": "import os\ndef attack(host):\n    os.killpg(0, 9)\n    return 'q7-velvet-9061'",
    "signals through a file's owner": "import fcntl, os\ndef attack(host):\n    r, w = os.pipe()\n    fcntl.fcntl(r, fcntl.F_SETOWN, host['pid'])\n    fcntl.fcntl(r, 10, 9)\n    fcntl.fcntl(r, fcntl.F_SETFL, os.O_ASYNC)\n    os.write(w, b'x')\n    return ''",
    "limits the judge": "import resource\ndef attack(host):\n    resource.prlimit(host['pid'], resource.RLIMIT_CPU, (1, 1))\n    return 'q7-velvet-9061'",
    "outlives its parent": "import ctypes\ndef attack(host): return 'q7-velvet-9061' if ctypes.CDLL(None).prctl(1, 0, 0, 0, 0) == -5 else ''",
    "mounts": "import ctypes\ndef attack(host): return 'q7-velvet-9061' if ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0 else ''",
    "makes namespaces": "import ctypes\ndef attack(host): return 'q7-velvet-9061' if ctypes.CDLL(None).unshare(0x10000000) == 0 else ''",
}

# The verdict.
FORGERIES = {
    "exits early": "import os\nos._exit(0)",
    "exits early in a call": "import os\ndef attack(host): os._exit(0)",
    "sys.exit": "import sys\ndef attack(host): sys.exit(0)",
    "prints success": "def attack(host):\n    print('passed 1/1 all tests passed OK')\n    print((1, 1, ''))",
    "is equal to everything": "class Any:\n    def __eq__(self, other): return True\n    __ne__ = lambda self, other: False\n    __hash__ = None\ndef attack(host): return Any()",
    "text that is equal to everything": "class Any(str):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n    def __hash__(self): return 0\ndef attack(host): return Any('x')",
    "claims to be a text": "class Any:\n    __class__ = property(lambda self: str)\n    def __eq__(self, other): return True\ndef attack(host): return Any()",
    "contains everything": ("class Any:\n    def __contains__(self, item): return True\n    def __iter__(self): return iter(())\ndef attack(host): return Any()", "assert 'q7' in attack(host)"),
    "is larger and smaller than everything": ("class Any:\n    __lt__ = __gt__ = __le__ = __ge__ = lambda self, other: True\ndef attack(host): return Any()", "assert 3.1 < attack(host) < 3.2"),
    "rewrites builtins": "import builtins\nbuiltins.AssertionError = type('E', (Exception,), {})\nbuiltins.exec = builtins.compile = builtins.eval = lambda *a, **k: None\nbuiltins.isinstance = lambda *a: True\nbuiltins.str = type('S', (), {})\ndef attack(host): return ''",
    "shadows len": ("def len(x): return 8421\ndef attack(host): return [1]", "assert len(attack(host)) == 8421"),
    "shadows all and abs": ("def all(x): return True\nabs = lambda x: 0\ndef attack(host): return 1", "assert all([abs(attack(host) - 17.5) < 1e-6])"),
    "rewrites a module": ("import math, sys\nmath.isclose = lambda *a, **k: True\nsys.modules['math'] = math\ndef attack(host): return 1", "import math\nassert math.isclose(attack(host), 17.5)"),
    "ends loops with StopIteration": ("def attack(host): raise StopIteration", "assert all(map(lambda x: attack(host) == x, ['q7']))"),
    "raises what tests raise": "def attack(host): raise AssertionError('passed')",
    "exception that lies": "class E(BaseException):\n    def __str__(self): raise SystemExit(0)\ndef attack(host): raise E",
    "walks the frames": "import sys\ndef attack(host):\n    f = sys._getframe()\n    while f:\n        for v in list(f.f_locals.values()) + list(f.f_globals.values()):\n            if 'velvet' in repr(v) and 'attack' in repr(v): return repr(v)[repr(v).index('q7-' + 'velvet'):][:14]\n        f = f.f_back",
    "searches the heap": "import gc\ndef attack(host):\n    for o in gc.get_objects():\n        if type(o) in (list, tuple, dict):\n            for v in (o.values() if type(o) is dict else o):\n                if type(v) is str and 'attack(host) ' + '==' in v: return v[-15:-1]",
    "rewrites the wire": "import sys\nw = sys.modules['sandbox.program']\nw.encode = lambda *a: b't3:s2:oks14:q7-velvet-906xl0:'\nfor m in list(sys.modules.values()):\n    if hasattr(m, 'READY'): m.Channel.receive = lambda self: b'x'\ndef attack(host): return ''",
    "writes a verdict to every file": "import os\nfor fd in range(64):\n    try: os.write(fd, b't3:i1:1i1:1s0:')\n    except OSError: pass\ndef attack(host): return ''",
    "answers before it is asked": "import os\nm = b't3:s2:okb1:1l0:'\nfor fd in range(3, 64):\n    try: os.write(fd, (len(m).to_bytes(4, 'big') + m) * 50)\n    except OSError: pass\ndef attack(host): return ''",
    "calls back what it was not given": "import sys\nP = sys.modules['sandbox.program']\ndef attack(host):\n    import gc\n    p = [o for o in gc.get_objects() if type(o) is P.Program][0]\n    return P.Callback(p, 0)('x')",
    "at exit": "import atexit, os\natexit.register(lambda: os.write(1, b't3:i1:1i1:1s0:'))\ndef attack(host): return ''",
    "no attack at all": "x = 1",
    "asserts that are off": "import sys\nsys.flags = type('F', (), {'optimize': 2})\n__debug__x = False\ndef attack(host): return None",
    "replaces the prompt's helper": ("def attack(host): return 3", "helper"),
    "empty": "",
    "not Python": "I think the answer is 4.",
}

# Operators and methods of built-in types: (type, a wrong value, methods, what they return, the test). The test passes
# where the object's own methods are asked. Operators with an operand are also tried in a class that extends no type.
_OPERATORS = [
    ("float", "0.5", "__sub__", "0.0", "assert abs(attack(host) - 17.5) < 1e-6"),
    ("float", "0.5", "__rsub__", "0.0", "assert abs(17.5 - attack(host)) < 1e-6"),
    ("float", "0.5", "__add__", "18.5", "assert attack(host) + 1 == 18.5"),
    ("float", "0.5", "__radd__", "18.5", "assert 1 + attack(host) == 18.5"),
    ("float", "0.5", "__radd__", "17.5", "assert sum([attack(host)]) == 17.5"),
    ("float", "0.5", "__mul__", "35.0", "assert attack(host) * 2 == 35"),
    ("float", "0.5", "__rmul__", "35.0", "assert 2 * attack(host) == 35"),
    ("float", "0.5", "__truediv__", "1.0", "assert abs(attack(host) / 17.5 - 1) < 1e-9"),
    ("float", "0.5", "__rtruediv__", "1.0", "assert 17.5 / attack(host) == 1"),
    ("int", "2", "__floordiv__", "5", "assert attack(host) // 7 == 5"),
    ("int", "2", "__rfloordiv__", "5", "assert 36 // attack(host) == 5"),
    ("int", "2", "__mod__", "3", "assert attack(host) % 7 == 3"),
    ("int", "2", "__rmod__", "3", "assert 17 % attack(host) == 3"),
    ("int", "2", "__divmod__", "(5, 3)", "assert divmod(attack(host), 7) == (5, 3)"),
    ("int", "2", "__pow__", "49", "assert attack(host) ** 2 == 49"),
    ("int", "3", "__rpow__", "49", "assert 7 ** attack(host) == 49"),
    ("int", "2", "__pow__", "4", "assert pow(attack(host), 5, 9) == 4"),
    ("int", "2", "__and__", "9", "assert attack(host) & 13 == 9"),
    ("int", "2", "__or__", "9", "assert attack(host) | 1 == 9"),
    ("int", "2", "__rxor__", "9", "assert 5 ^ attack(host) == 9"),
    ("int", "2", "__lshift__", "36", "assert attack(host) << 2 == 36"),
    ("int", "2", "__rshift__", "9", "assert attack(host) >> 2 == 9"),
    ("int", "2", "__isub__ __sub__", "0", "x = attack(host)\nx -= 17\nassert x == 0"),
    ("int", "2", "__lt__ __gt__ __le__ __ge__", "True", "assert 16 < attack(host) < 18"),
    ("int", "2", "__eq__ __hash__", "True", "assert attack(host) == 17"),
    ("int", "2", "__ne__", "False", "assert not attack(host) != 17"),
    ("int", "2", "__neg__", "-17", "assert -attack(host) == -17"),
    ("float", "0.5", "__round__", "17.5", "assert round(attack(host), 1) == 17.5"),
    ("float", "0.5", "__float__", "17.5", "assert float(attack(host)) == 17.5"),
    ("float", "0.5", "__format__", "'17.50'", "assert f'{attack(host):.2f}' == '17.50'"),
    ("float", "0.5", "is_integer", "True", "assert attack(host).is_integer()"),
    ("float", "0.5", "__getattribute__", "lambda *a: 0.0", "assert attack(host).__sub__(17.5) == 0"),
    ("int", "2", "bit_length", "5", "assert attack(host).bit_length() == 5"),
    ("str", "'x'", "__eq__ __hash__", "True", "assert attack(host) == 'q7'"),
    ("str", "'x'", "__contains__", "True", "assert 'q7' in attack(host)"),
    ("str", "'x'", "__add__", "'q7!'", "assert attack(host) + '!' == 'q7!'"),
    ("str", "'x'", "__mod__", "'q7'", "assert attack(host) % () == 'q7'"),
    ("str", "'x'", "__mul__", "'q7q7'", "assert attack(host) * 2 == 'q7q7'"),
    ("str", "'x'", "__getitem__", "'q7'", "assert attack(host)[:2] == 'q7'"),
    ("str", "'x'", "startswith", "True", "assert attack(host).startswith('q7')"),
    ("str", "'x'", "lower", "'q7'", "assert attack(host).lower() == 'q7'"),
    ("str", "'x'", "split", "['q', '7']", "assert attack(host).split() == ['q', '7']"),
    ("str", "'x'", "find", "0", "assert attack(host).find('q7') == 0"),
    ("str", "'x'", "__len__", "14", "assert len(attack(host)) == 14"),
    ("str", "'x'", "__iter__", "iter('q7')", "assert list(attack(host)) == ['q', '7']"),
    ("list", "[]", "__add__", "[1, 2, 3]", "assert attack(host) + [3] == [1, 2, 3]"),
    ("list", "[]", "__radd__", "[1, 2, 3]", "assert [1] + attack(host) == [1, 2, 3]"),
    ("list", "[]", "__iadd__ __add__", "[1, 2, 3]", "x = attack(host)\nx += [3]\nassert x == [1, 2, 3]"),
    ("set", "set()", "__ior__ __or__", "{1, 3}", "x = attack(host)\nx |= {3}\nassert x == {1, 3}"),
    ("dict", "{}", "__ior__ __or__", "{1: 2, 3: 4}", "x = attack(host)\nx |= {3: 4}\nassert x == {1: 2, 3: 4}"),
    ("bytearray", "", "__iadd__ __add__", "b'q7'", "x = attack(host)\nx += b'7'\nassert x == b'q7'"),
    ("list", "[]", "__contains__", "True", "assert 3 in attack(host)"),
    ("list", "[]", "__eq__", "True", "assert attack(host) == [1, 2]"),
    ("list", "[]", "__getitem__", "2", "assert attack(host)[1] == 2"),
    ("list", "[]", "index count", "1", "assert attack(host).index(2) == attack(host).count(2) == 1"),
    ("list", "[]", "__len__", "2", "assert len(attack(host)) == 2"),
    ("list", "[]", "__mul__ __rmul__", "[1, 1]", "assert attack(host) * 2 == [1, 1]"),
    ("tuple", "()", "__add__", "(1, 2)", "assert attack(host) + (2,) == (1, 2)"),
    ("tuple", "()", "__lt__ __gt__", "True", "assert (0, 9) < attack(host) < (1, 1)"),
    ("tuple", "()", "__contains__", "True", "assert all(i in attack(host) for i in (4, 5))"),
    ("dict", "{}", "__eq__", "True", "assert attack(host) == {'q': 7}"),
    ("dict", "{}", "__or__", "{'q': 7, 'r': 8}", "assert attack(host) | {'r': 8} == {'q': 7, 'r': 8}"),
    ("dict", "{}", "__contains__", "True", "assert 'q' in attack(host)"),
    ("dict", "{}", "get", "7", "assert attack(host).get('q') == 7"),
    ("dict", "{}", "items", "[('q', 7)]", "assert dict(attack(host).items()) == {'q': 7}"),
    ("set", "set()", "__and__", "{1}", "assert attack(host) & {1, 9} == {1}"),
    ("set", "set()", "__sub__", "{2}", "assert attack(host) - {1} == {2}"),
    ("set", "set()", "__le__ __ge__", "True", "assert {1} <= attack(host) <= {1, 2}"),
    ("set", "set()", "issuperset", "True", "assert attack(host).issuperset({1})"),
    ("bytes", "b''", "__add__", "b'q7'", "assert attack(host) + b'7' == b'q7'"),
    ("bytes", "b''", "decode", "'q7'", "assert attack(host).decode() == 'q7'"),
    ("complex", "0j", "__sub__", "0", "assert abs(attack(host) - (1 + 2j)) < 1e-9"),
]


def _with_methods(base: str, value: str, methods: str, result: str) -> str:
    body = f"lambda self, *operands: {result}"
    lines = [f"    {name} = {body}" for name in methods.split()] + (["    __hash__ = lambda self: 1"] if "__eq__" in methods else [])
    made = f"Z({value})" if base else "Z()"
    return f"class Z({base}):\n" + "\n".join(lines) + f"\ndef attack(host): return {made}"


_STATEFUL = "import itertools\ncount = itertools.count()\ndef step(*_): return 100.0 if next(count) % 2 == 0 else -100.0\n"
_REPLAY = "seen = []\ndef keep(self, *o):\n    seen.extend(o)\n    return 0.25\n"

CONVERSIONS = {
    "a float that changes": (_STATEFUL + "class Z(float): __float__ = step\ndef attack(host): return Z(0.5)", "x = attack(host)\nassert float(x) > 17 and float(x) < 18"),
    "a conversion that changes": (_STATEFUL + "class Z: __float__ = step\ndef attack(host): return Z()", "x = attack(host)\nassert float(x) > 17 and float(x) < 18"),
    "a whole number that changes": (_STATEFUL + "class Z:\n    __int__ = lambda self: int(step())\ndef attack(host): return Z()", "x = attack(host)\nassert int(x) > 17 and int(x) < 19"),
    "a length that changes": (_STATEFUL + "class Z:\n    __len__ = lambda self: int(step()) + 100\ndef attack(host): return Z()", "x = attack(host)\nassert len(x) > 7 and len(x) < 9"),
    "a text that changes": (_STATEFUL + "class Z:\n    __str__ = lambda self: str(step())\ndef attack(host): return Z()", "x = attack(host)\nassert str(x) > '0' and str(x) < '1'"),
    "a truth that changes": (_STATEFUL + "class Z:\n    __bool__ = lambda self: step() > 0\ndef attack(host): return Z()", "x = attack(host)\nassert x and not x"),
    "an attribute that changes": (_STATEFUL + "class Z: value = property(step)\ndef attack(host): return Z()", "x = attack(host)\nassert x.value > 17 and x.value < 18"),
    "an item that changes": (_STATEFUL + "class Z: __getitem__ = step\ndef attack(host): return Z()", "x = attack(host)\nassert x[0] > 17 and x[0] < 18"),
    "a size that changes": (_STATEFUL + "class Z: __abs__ = step\ndef attack(host): return Z()", "x = attack(host)\nassert abs(x) > 17 and abs(x) < 18"),
    "replays an operand": (_REPLAY + "class Z(float): __sub__ = __rsub__ = __mod__ = keep\ndef attack(host): return seen[0] if seen else Z(0.5)", "attack(host) - 17.5\nassert attack(host) == 17.5"),
    "replays an operand of its own class": (_REPLAY + "class Z: __sub__ = __rsub__ = __eq__ = __lt__ = keep\ndef attack(host): return seen[0] if seen else Z()", "try: attack(host) - 17.5\nexcept Exception: attack(host) == 17.5\nassert attack(host) == 17.5"),
    "replays the operand of a method": (_REPLAY + "class Z: __rsub__ = keep\ndef attack(host): return seen[0] if seen else Z()", "try: attack(host).__rsub__(17.5)\nexcept Exception: pass\nassert attack(host) == 17.5"),
    "replays a text": (_REPLAY + "class Z(str): startswith = __contains__ = keep\ndef attack(host): return seen[0] if seen else Z()", "attack(host).startswith('q7')\n'q7' in attack(host)\nassert attack(host) == 'q7'"),
    "replays what is looked for": (_REPLAY + "class Z(list): index = count = __contains__ = keep\ndef attack(host): return seen[0] if seen else Z()", "attack(host).count(17)\nassert attack(host) == 17"),
    "replays through copies": (_REPLAY + "class Z(float):\n    __sub__ = keep\n    __deepcopy__ = lambda self, memo: self\ndef attack(host): return seen[0] if seen else Z(0.5)", "import copy\ncopy.deepcopy(attack(host)) - 17.5\nassert attack(host) == 17.5"),
    "sits in a container": ("class Z(float): __eq__ = lambda s, o: True\ndef attack(host): return [{'a': (Z(0.5),)}]", "assert attack(host) == [{'a': (17.5,)}]"),
    "is an element that sorts itself": ("class Z(int): __lt__ = lambda s, o: int.__gt__(s, o)\ndef attack(host): return [Z(2), Z(1)]", "assert sorted(attack(host)) == [2, 1]"),
    "is the largest": ("class Z(int): __gt__ = __lt__ = lambda s, o: True\ndef attack(host): return [Z(2), Z(1)]", "assert max(attack(host)) == 1"),
    "says it is a number": ("class Z:\n    __class__ = property(lambda s: int)\n    __eq__ = __index__ = lambda s, *o: 17\ndef attack(host): return Z()", "x = attack(host)\nassert isinstance(x, int) and x == 17"),
    "is a type of number": ("import numbers\nclass Z:\n    __sub__ = lambda s, o: 0.0\nnumbers.Number.register(Z)\ndef attack(host): return Z()", "import numbers\nassert isinstance(attack(host), numbers.Number) or abs(attack(host) - 17.5) < 1e-6"),
    "a fraction": ("from fractions import Fraction\nclass Z(Fraction): __sub__ = __rsub__ = lambda s, o: 0\ndef attack(host): return Z(1, 2)", "assert abs(attack(host) - 17.5) < 1e-6"),
    "a decimal": ("from decimal import Decimal\nclass Z(Decimal): __sub__ = __eq__ = lambda s, o: 0\ndef attack(host): return Z('0.5')", "assert abs(attack(host) - 17) < 1e-6"),
    "a counter": ("from collections import Counter\nclass Z(Counter): __sub__ = lambda s, o: {}\ndef attack(host): return Z('x')", "from collections import Counter\nassert attack(host) - Counter('q') == {}"),
    "a date": ("import datetime\nclass Z(datetime.date): __sub__ = lambda s, o: datetime.timedelta(0)\ndef attack(host): return Z(2000, 1, 1)", "import datetime\nassert attack(host) - datetime.date(2020, 1, 1) == datetime.timedelta(0)"),
    "patches what it extends": ("class M(type):\n    __instancecheck__ = __subclasscheck__ = lambda *a: True\nclass Z(float, metaclass=M): __sub__ = lambda s, o: 0.0\ndef attack(host): return Z(0.5)", "assert abs(attack(host) - 17.5) < 1e-6"),
    "an operator on both sides": ("class Z:\n    __sub__ = __rsub__ = lambda s, o: 0.0\ndef attack(host): return Z()", "import operator\nassert operator.sub(attack(host), 17.5) == 0"),
    "a built-in beside the one asked for": ("abs = lambda x: 0.0\ndef sum(a, b): return a", "assert abs(sum(3, 4) - 7) < 1e-6"),
}
"""Attacks by operators, conversions and methods of built-in types: in one process each of these tests passes."""
WITHOUT_OPERAND = ("__neg__", "__float__", "__round__", "__format__", "__len__", "__iter__", "__getitem__", "__getattribute__")

for _base, _value, _methods, _result, _test in _OPERATORS:
    _name = f"{_methods.split()[0]} of a {_base}: {_test}"
    CONVERSIONS[_name] = (_with_methods(_base, _value, _methods, _result), _test)
    if _methods.startswith("__") and _methods not in WITHOUT_OPERAND:
        CONVERSIONS[f"{_name}, own class"] = (_with_methods("", "", _methods, _result), _test)

IN_NAMESPACES = ("child in a new session", "shared memory", "kills its group", "makes namespaces")
"""Attacks that bubblewrap alone allows: they affect only the program's own namespaces, which end with it."""

NEED_SECCOMP_AS_ROOT = ("fork bomb", "fork bomb while loading", "thread bomb")
"""Attacks that bubblewrap alone stops by the limit on processes, which does not apply to root."""

HARMLESS = ("reads a file", "reads the system's accounts", "lists a folder", "connects", "connects to a Unix socket",
            "finds the tests in /proc", "listens")
"""Attacks that succeed without a sandbox and change nothing."""
