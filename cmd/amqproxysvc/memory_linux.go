package main

import (
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// systemMemoryLimit is the smallest memory limit of the process's cgroup and those above it,
// 0 where there is none. A container's limit and a unit's MemoryMax= are such.
func systemMemoryLimit() (bytes int64, from string) { return cgroupMemoryLimit("/") }

func cgroupMemoryLimit(root string) (bytes int64, from string) {
	cgroups, err := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	if err != nil {
		return 0, ""
	}
	for line := range strings.Lines(string(cgroups)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(fields) < 3 {
			continue
		}
		top, names := "sys/fs/cgroup", []string{"memory.max", "memory.high"} // version 2
		switch {
		case fields[0] == "0" && fields[1] == "":
		case hasController(fields[1], "memory"):
			top, names = "sys/fs/cgroup/memory", []string{"memory.limit_in_bytes"}
		default:
			continue
		}
		// In a container the path may be the host's, of which only the top is seen.
		for at := path.Clean("/" + fields[2]); ; at = path.Dir(at) {
			for _, name := range names {
				file := filepath.Join("/", top, at, name)
				if n := limitIn(filepath.Join(root, file)); n > 0 && (bytes == 0 || n < bytes) {
					bytes, from = n, file
				}
			}
			if at == "/" {
				break
			}
		}
	}
	return bytes, from
}

func hasController(list, name string) bool {
	for c := range strings.SplitSeq(list, ",") {
		if c == name {
			return true
		}
	}
	return false
}

// noLimit and more is how version 1 says that there is none: the largest number of whole pages.
const noLimit = 1 << 60

func limitIn(file string) int64 {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64) // "max": none
	if err != nil || n >= noLimit {
		return 0
	}
	return n
}
