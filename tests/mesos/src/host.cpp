// mesos-host: runs the Apache Mesos 1.11.0 master, agent and containerizer
// helper out of the shared library published as the PyPI package
// `mesos.scheduler`.
//
// That library is a Python 2.7 extension module which contains all of libmesos
// and exports every symbol. This program satisfies its few references to the
// Python C API with dummies, loads it, and then does what the `main()`
// functions of mesos-master, mesos-agent and mesos-containerizer do in the
// Mesos sources: it constructs the flags, the containerizer, the agent and so
// on through their exported constructors. Objects are placed in zeroed memory
// that is larger than any of them and are never destroyed.
//
// The role is taken from argv[0]: mesos-master, mesos-agent or
// mesos-containerizer.

#include <dlfcn.h>
#include <limits.h>
#include <cxxabi.h>
#include <unistd.h>

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <typeinfo>
#include <vector>

// ---- what the extension module expects from its Python 2.7 host ------------
extern "C" {
#define DUMMY(n) long n() { return 0; }
DUMMY(PyArg_ParseTuple) DUMMY(PyDict_GetItemString) DUMMY(PyErr_Format)
DUMMY(PyErr_Occurred) DUMMY(PyErr_Print) DUMMY(PyEval_InitThreads)
DUMMY(PyEval_RestoreThread) DUMMY(PyEval_SaveThread) DUMMY(PyGILState_Ensure)
DUMMY(PyGILState_Release) DUMMY(PyImport_ImportModule) DUMMY(PyInt_FromLong)
DUMMY(PyIter_Next) DUMMY(PyList_GetItem) DUMMY(PyList_New)
DUMMY(PyList_SetItem) DUMMY(PyList_Size) DUMMY(PyModule_AddObject)
DUMMY(PyModule_GetDict) DUMMY(PyObject_CallMethod) DUMMY(PyObject_GetIter)
DUMMY(PyString_AsStringAndSize) DUMMY(PyType_Ready) DUMMY(Py_InitModule4_64)
void* PyExc_Exception;
void* PyExc_TypeError;
long _Py_NoneStruct[16];
}

// ---- layouts of the stout templates that appear in the called signatures ---
// Option<T>: enum State { SOME, NONE }; then storage for T.
struct OptionString {
  int state;
  alignas(8) char t[sizeof(std::string)];
  OptionString() : state(1) { memset(t, 0, sizeof t); }
  explicit OptionString(const std::string& s) : state(0) {
    new (t) std::string(s);
  }
};

struct OptionNone {  // an unset Option of any type up to 4 KiB
  int state;
  alignas(16) char t[4096];
  OptionNone() : state(1) { memset(t, 0, sizeof t); }
};

struct Duration { long long nanos; };

// Try<T>: Option<T> data; Option<Error> error (Error holds one std::string).
// `size` is sizeof(T) rounded up to 8.
struct TryBuffer {
  alignas(16) char raw[8192];
  TryBuffer() { memset(raw, 0, sizeof raw); }
  bool some() const { return *(const int*)raw == 0; }
  void* value() { return raw + 8; }
  std::string error(size_t size) const {
    const char* e = raw + 8 + size;
    if (*(const int*)e != 0) return "unknown error";
    return *(const std::string*)(e + 8);
  }
};

#define STR "NSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE"
#define OPT_STR "6OptionI" STR "E"

static void* library;
static std::string self;   // path of this executable
static std::string prefix; // directory above the one holding it

[[noreturn]] static void die(const std::string& what) {
  fprintf(stderr, "mesos-host: %s\n", what.c_str());
  exit(1);
}

static void* sym(const char* name) {
  void* p = dlsym(library, name);
  if (!p) die(std::string("missing symbol ") + name);
  return p;
}

// Converts to a (possibly virtual) base class, given the two type_infos.
static void* upcast(void* object, const char* type, const char* base) {
  const std::type_info* t = (const std::type_info*)sym(type);
  if (!t->__do_upcast((const abi::__class_type_info*)sym(base), &object))
    die(std::string("cannot convert ") + type + " to " + base);
  return object;
}

template <typename R, typename... A>
static R call(const char* name, A... a) {
  return ((R(*)(A...))sym(name))(a...);
}

static void* object(size_t size = 1 << 20) {
  void* p = calloc(1, size);
  if (!p) die("out of memory");
  return p;
}

// A static factory returning Try<T*>.
template <typename... A>
static void* create(const char* what, const char* name, A... a) {
  TryBuffer* r = new TryBuffer();
  call<void, TryBuffer*, A...>(name, r, a...);
  if (!r->some())
    die(std::string("failed to create ") + what + ": " + r->error(8));
  return *(void**)r->value();
}

static void load() {
  char buf[PATH_MAX];
  ssize_t n = readlink("/proc/self/exe", buf, sizeof buf - 1);
  if (n < 0) die("cannot read /proc/self/exe");
  buf[n] = 0;
  self = buf;
  std::string dir = self.substr(0, self.rfind('/'));
  prefix = dir.substr(0, dir.rfind('/'));
  std::string lib = prefix + "/lib";
  // The stand-ins are loaded by path first, so that the library's dependencies
  // are already satisfied by name and nothing needs LD_LIBRARY_PATH (which the
  // tasks would inherit).
  for (const char* s : {"libcrypto.so.1.0.0", "libssl.so.1.0.0", "libcurl.so.4"})
    if (!dlopen((lib + "/" + s).c_str(), RTLD_NOW | RTLD_GLOBAL)) die(dlerror());
  library = dlopen((lib + "/libmesos-1.11.0.so").c_str(), RTLD_LAZY | RTLD_GLOBAL);
  if (!library) die(dlerror());
}

// Loads `flags` from the environment (MESOS_...) and the command line.
static void* loadFlags(void* flags, const char* type, const std::string& env,
                       int argc, const char* const* argv, bool unknowns) {
  void* base = upcast(flags, type, "_ZTIN5flags9FlagsBaseE");
  OptionString* p = new OptionString(env);
  TryBuffer* r = new TryBuffer();
  call<void, TryBuffer*, void*, OptionString*, int, const char* const*, bool, bool>(
      "_ZN5flags9FlagsBase4loadERK" OPT_STR "iPKPKcbb",
      r, base, p, argc, argv, unknowns, false);
  if (!r->some()) die(r->error(24));
  // Warnings { vector<Warning { string message }> }
  std::vector<std::string>* w = (std::vector<std::string>*)r->value();
  for (const std::string& s : *w) fprintf(stderr, "flag warning: %s\n", s.c_str());
  return base;
}

static std::string flagValue(const char* name, int argc, char** argv,
                             const std::string& fallback) {
  std::string cli = std::string("--") + name + "=";
  for (int i = argc - 1; i > 0; i--)
    if (!strncmp(argv[i], cli.c_str(), cli.size())) return argv[i] + cli.size();
  std::string env = "MESOS_";
  for (const char* c = name; *c; c++) env += (char)toupper(*c);
  const char* v = getenv(env.c_str());
  return v ? v : fallback;
}

static void initialize(const char* delegate, const char* role) {
  std::string argv0 = role;
  OptionNone none;
  call<void, std::string*, bool, OptionNone*>(
      "_ZN5mesos8internal7logging10initializeERK" STR "bRK6OptionINS1_5FlagsEE",
      &argv0, true, &none);
  std::string realm = std::string("mesos-") + role;
  OptionString d(delegate), rw(realm + "-readwrite"), ro(realm + "-readonly");
  if (!call<bool, OptionString*, OptionString*, OptionString*>(
          "_ZN7process10initializeERK" OPT_STR "S9_S9_", &d, &rw, &ro))
    die("libprocess was already initialized");
  // GET /version
  void* version = object();
  call<void, void*>("_ZN5mesos8internal14VersionProcessC1Ev", version);
  void* process = upcast(
      version, "_ZTIN5mesos8internal14VersionProcessE", "_ZTIN7process11ProcessBaseE");
  alignas(16) char upid[1024];
  call<void, char*, void*, bool>("_ZN7process5spawnEPNS_11ProcessBaseEb", upid, process, true);
}

static void waitFor(const std::string& pid) {
  void* upid = object(4096);
  call<void, void*, const std::string*>("_ZN7process4UPIDC1ERK" STR, upid, &pid);
  Duration forever{-1000000000LL};
  call<bool, void*, Duration*>("_ZN7process4waitERKNS_4UPIDERK8Duration", upid, &forever);
}

static void prepareEnvironment(int argc, char** argv, const char* port) {
  setenv("LIBPROCESS_IP", flagValue("ip", argc, argv, "127.0.0.1").c_str(), 1);
  setenv("LIBPROCESS_PORT", flagValue("port", argc, argv, port).c_str(), 1);
  setenv("LIBPROCESS_MEMORY_PROFILING", "false", 0);
  if (!flagValue("launcher_dir", argc, argv, "").size())
    setenv("MESOS_LAUNCHER_DIR", (prefix + "/libexec").c_str(), 1);
}

// ---- mesos-master -----------------------------------------------------------
// mesos::internal::local::launch() with no agents is exactly a master with a
// standalone contender/detector. It reads the master's flags from the
// environment only and appends "master" to the work directory.
static int master(int argc, char** argv) {
  for (int i = 1; i < argc; i++) {
    const char* eq = strchr(argv[i], '=');
    if (strncmp(argv[i], "--", 2)) die(std::string("unexpected argument ") + argv[i]);
    std::string name = "MESOS_";
    for (const char* c = argv[i] + 2; *c && *c != '='; c++) name += (char)toupper(*c);
    std::string value = eq ? eq + 1 : "true";
    if (!eq && name.rfind("MESOS_NO-", 0) == 0) { name.erase(6, 3); value = "false"; }
    setenv(name.c_str(), value.c_str(), 1);
  }
  if (!getenv("MESOS_WORK_DIR")) die("--work_dir is required");
  for (const char* f : {"MESOS_ZK", "MESOS_MASTER_CONTENDER", "MESOS_MASTER_DETECTOR", "MESOS_FIREWALL_RULES"})
    if (getenv(f)) die(std::string(f) + " is not supported");
  setenv("MESOS_NUM_SLAVES", "0", 1);
  prepareEnvironment(1, argv, "5050");
  initialize("master", "master");
  void* flags = object();
  call<void, void*>("_ZN5mesos8internal5local5FlagsC1Ev", flags);
  const char* none[] = {"mesos-master", nullptr};
  loadFlags(flags, "_ZTIN5mesos8internal5local5FlagsE", "MESOS_", 1, none, true);
  alignas(16) char pid[1024];
  call<void, char*, void*, void*>(
      "_ZN5mesos8internal5local6launchERKNS1_5FlagsEPNS_9allocator9AllocatorE",
      pid, flags, nullptr);
  waitFor("master@" + std::string(getenv("LIBPROCESS_IP")) + ":" + getenv("LIBPROCESS_PORT"));
  return 0;
}

// ---- mesos-agent ------------------------------------------------------------
static int agent(int argc, char** argv) {
#define SLAVE "N5mesos8internal5slave"
  prepareEnvironment(argc, argv, "5051");
  void* flags = object();
  call<void, void*>("_Z" SLAVE "5FlagsC1Ev", flags);
  loadFlags(flags, "_ZTI" SLAVE "5FlagsE", "MESOS_", argc, argv, false);

  for (const char* f : {"modules", "modules_dir", "hooks", "firewall_rules", "acls",
                        "ip_discovery_command", "master_detector", "jwt_secret_key",
                        "resource_estimator", "qos_controller", "domain_socket_location"})
    if (!flagValue(f, argc, argv, "").empty()) die(std::string("--") + f + " is not supported");

  const std::string masterAddress = flagValue("master", argc, argv, "");
  const std::string workDir = flagValue("work_dir", argc, argv, "");
  if (masterAddress.empty()) die("--master is required");

  const std::string id = "slave(1)";
  initialize(id.c_str(), "agent");

  OptionNone none;
  void* fetcher = object();
  call<void, void*, void*>("_Z" SLAVE "7FetcherC1ERKNS1_5FlagsE", fetcher, flags);
  void* gc = object();
  call<void, void*, const std::string*>(
      "_Z" SLAVE "16GarbageCollectorC1ERK" STR, gc, &workDir);
  void* secrets = create("secret resolver",
      "_ZN5mesos14SecretResolver6createERK" OPT_STR, &none);

  void* gids = nullptr;
  if (!flagValue("volume_gid_range", argc, argv, "").empty())
    gids = create("volume gid manager",
        "_Z" SLAVE "16VolumeGidManager6createERKNS1_5FlagsE", flags);

  // Owned<CSIServer>: a shared_ptr to a struct whose first member is the
  // pointer.
  void** csiOwned = (void**)object(64);
  void* csi = nullptr;
  if (!flagValue("csi_plugin_config_dir", argc, argv, "").empty()) {
    TryBuffer* url = new TryBuffer();
    std::string s = std::string("http://") + getenv("LIBPROCESS_IP") + ":" +
        getenv("LIBPROCESS_PORT") + "/" + id + "/api/v1";
    call<void, TryBuffer*, std::string*>("_ZN7process4http3URL5parseERK" STR, url, &s);
    if (!url->some()) die("cannot parse " + s);
    TryBuffer* r = new TryBuffer();
    call<void, TryBuffer*, void*, void*, void*, void*>(
        "_Z" SLAVE "9CSIServer6createERKNS1_5FlagsERKN7process4http3URLE"
        "PNS_15SecretGeneratorEPNS_14SecretResolverE",
        r, flags, url->value(), nullptr, secrets);
    if (!r->some()) die("failed to initialize the CSI server: " + r->error(16));
    csiOwned = (void**)r->value();
    csi = *(void**)csiOwned[0];
  }

  void* containerizer = create("containerizer",
      "_Z" SLAVE "13Containerizer6createERKNS1_5FlagsEbPNS1_7FetcherE"
      "PNS1_16GarbageCollectorEPNS_14SecretResolverEPNS1_16VolumeGidManagerE"
      "PNS0_20PendingFutureTrackerEPNS1_9CSIServerE",
      flags, false, fetcher, gc, secrets, gids, (void*)nullptr, csi);

  OptionString zk(masterAddress);
  OptionNone module, timeout;
  void* detector = create("master detector",
      "_ZN5mesos6master8detector14MasterDetector6createERK" OPT_STR "SC_RKS3_I8DurationE",
      &zk, &module, &timeout);

  OptionString realm(std::string("mesos-agent-readonly"));
  OptionNone authorizer;
  void* files = object();
  call<void, void*, OptionString*, OptionNone*>(
      "_ZN5mesos8internal5FilesC1ERK" OPT_STR "RKS2_IPNS_10AuthorizerEE",
      files, &realm, &authorizer);
  void* updates = object();
  call<void, void*, void*>(
      "_Z" SLAVE "23TaskStatusUpdateManagerC1ERKNS1_5FlagsE", updates, flags);
  void* estimator = create("resource estimator",
      "_ZN5mesos5slave17ResourceEstimator6createERK" OPT_STR, &module);
  void* qos = create("QoS controller",
      "_ZN5mesos5slave13QoSController6createERK" OPT_STR, &module);

  void* slave = object(4 << 20);
  OptionNone socket;
  call<void, void*, const std::string*, void*, void*, void*, void*, void*, void*,
       void*, void*, void*, void*, void*, void*, OptionNone*, OptionNone*>(
      "_Z" SLAVE "5SlaveC1ERK" STR
      "RKNS1_5FlagsEPNS_6master8detector14MasterDetectorEPNS1_13Contain"
      "erizerEPNS0_5FilesEPNS1_16GarbageCollectorEPNS1_23TaskStatusUpda"
      "teManagerEPNS_5slave17ResourceEstimatorEPNSQ_13QoSControllerEPNS"
      "_15SecretGeneratorEPNS1_16VolumeGidManagerEPNS0_20PendingFutureT"
      "rackerEON7process5OwnedINS1_9CSIServerEEERK6OptionINS11_7network"
      "8internal6SocketINS17_4unix7AddressEEEERKS16_IPNS_10AuthorizerEE",
      slave, &id, flags, detector, containerizer, files, gc, updates,
      estimator, qos, nullptr, gids, nullptr, csiOwned, &socket, &authorizer);

  void* process = upcast(slave, "_ZTI" SLAVE "5SlaveE", "_ZTIN7process11ProcessBaseE");
  alignas(16) char upid[1024];
  call<void, char*, void*, bool>("_ZN7process5spawnEPNS_11ProcessBaseEb", upid, process, false);
  waitFor(id + "@" + getenv("LIBPROCESS_IP") + ":" + getenv("LIBPROCESS_PORT"));
  return 0;
}

// ---- mesos-containerizer ----------------------------------------------------
// A Subcommand is { vtable, string name, FlagsBase, Flags flags }; the offset
// of `flags` is confirmed through the virtual getFlags() below.
static const size_t SUBCOMMAND_FLAGS = 0xE0;

static int containerizer(int argc, char** argv) {
  if (argc < 2) die("usage: mesos-containerizer launch|network-cni-setup [flags]");
  const std::string name = argv[1];
  std::string cls;
  if (name == "launch") cls = "24MesosContainerizerLaunch";
  else if (name == "network-cni-setup") cls = "23NetworkCniIsolatorSetup";
  else die("unsupported subcommand " + name);
  char* object_ = (char*)object();
  void** vtable = (void**)sym(("_ZTV" SLAVE + cls + "E").c_str()) + 2;
  *(void***)object_ = vtable;
  new (object_ + 8) std::string(name);
  char* flags = object_ + SUBCOMMAND_FLAGS;
  call<void, void*>(("_Z" SLAVE + cls + "5FlagsC1Ev").c_str(), flags);
  void* base = loadFlags(flags, ("_ZTI" SLAVE + cls + "5FlagsE").c_str(),
                         "MESOS_CONTAINERIZER_", argc - 1, argv + 1, false);
  if (((void*(*)(void*))vtable[3])(object_) != base) die("Subcommand layout");
  return call<int, void*>(("_Z" SLAVE + cls + "7executeEv").c_str(), object_);
}

int main(int argc, char** argv) {
  load();
  std::string role = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0];
  if (role == "mesos-master") return master(argc, argv);
  if (role == "mesos-agent") return agent(argc, argv);
  if (role == "mesos-containerizer") return containerizer(argc, argv);
  die("unknown role " + role);
}
