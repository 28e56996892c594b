package main

import (
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
)

func TestCgroupMemoryLimit(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  int64
		from  string
	}{
		"no cgroups": {nil, 0, ""},
		"version 2, a unit's": {map[string]string{
			"proc/self/cgroup": "0::/system.slice/amqproxysvc.service\n",
			"sys/fs/cgroup/system.slice/amqproxysvc.service/memory.max": "209715200\n",
			"sys/fs/cgroup/system.slice/memory.max":                     "max\n",
		}, 209715200, "/sys/fs/cgroup/system.slice/amqproxysvc.service/memory.max"},
		"version 2, the slice's is smaller, and high more so": {map[string]string{
			"proc/self/cgroup":                      "0::/a.slice/b\n",
			"sys/fs/cgroup/a.slice/b/memory.max":    "300\n",
			"sys/fs/cgroup/a.slice/memory.max":      "200\n",
			"sys/fs/cgroup/a.slice/memory.high":     "100\n",
			"sys/fs/cgroup/other.slice/memory.high": "1\n",
		}, 100, "/sys/fs/cgroup/a.slice/memory.high"},
		"version 2, a container's": {map[string]string{
			"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "134217728\n",
		}, 134217728, "/sys/fs/cgroup/memory.max"},
		"version 2, the host's path in a container": {map[string]string{
			"proc/self/cgroup": "0::/../../kubepods/pod1/c\n", "sys/fs/cgroup/memory.max": "134217728\n",
		}, 134217728, "/sys/fs/cgroup/memory.max"},
		"version 1": {map[string]string{
			"proc/self/cgroup": "9:cpu,memory:/docker/c\n1:name=systemd:/docker/c\n0::/\n",
			"sys/fs/cgroup/memory/docker/c/memory.limit_in_bytes": "104857600\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes":          "9223372036854771712\n",
		}, 104857600, "/sys/fs/cgroup/memory/docker/c/memory.limit_in_bytes"},
		"version 1 without one": {map[string]string{
			"proc/self/cgroup": "4:memory:/\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
		}, 0, ""},
		"nonsense": {map[string]string{
			"proc/self/cgroup": "4:memory\n\n:::\n0::/x\n", "sys/fs/cgroup/x/memory.max": "-5\n",
		}, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for file, text := range c.files {
				at := filepath.Join(root, file)
				if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(at, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if n, from := cgroupMemoryLimit(root); n != c.want || from != c.from {
				t.Errorf("%d from %q, want %d from %q", n, from, c.want, c.from)
			}
		})
	}
}

func TestLimitMemory(t *testing.T) {
	t.Cleanup(func() { debug.SetMemoryLimit(math.MaxInt64) })
	system := func() (int64, string) { return 10 << 30, "a file" }
	none := func() (int64, string) { return 0, "" }
	now := func() int64 { return debug.SetMemoryLimit(-1) }
	t.Setenv("GOMEMLIMIT", "")
	if limitMemory("auto", system); now() != 9<<30 {
		t.Errorf("auto keeps within %d", now())
	}
	if limitMemory("off", system); now() != math.MaxInt64 {
		t.Errorf("off keeps within %d", now())
	}
	limitMemory("auto", system)
	if limitMemory("auto", none); now() != math.MaxInt64 {
		t.Errorf("without a limit it keeps within %d", now())
	}
	t.Setenv("GOMEMLIMIT", "1GiB") // the runtime has read it already
	if limitMemory("auto", system); now() != math.MaxInt64 {
		t.Errorf("with GOMEMLIMIT it keeps within %d", now())
	}
}
