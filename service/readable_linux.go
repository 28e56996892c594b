// May the service's user read a file? By its mode alone: root's own look says nothing.

package service

import (
	"fmt"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"
)

// Unreadable says why the user cannot read the file, and what to do; empty: it can, or it
// cannot be told.
func Unreadable(name, file string) string {
	u, err := user.Lookup(name)
	if err != nil || u.Uid == "0" {
		return ""
	}
	info, err := os.Stat(file)
	if err != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	groups, err := u.GroupIds()
	if err != nil {
		return ""
	}
	mode := info.Mode().Perm()
	switch {
	case strconv.FormatUint(uint64(st.Uid), 10) == u.Uid && mode&0o400 != 0,
		slices.Contains(groups, strconv.FormatUint(uint64(st.Gid), 10)) && mode&0o040 != 0,
		mode&0o004 != 0:
		return ""
	}
	if g, err := user.LookupGroupId(u.Gid); err == nil {
		return fmt.Sprintf("the service's user %s may not read it: chgrp %s %s && chmod g+r %s", name, g.Name, file, file)
	}
	return "the service's user " + name + " may not read it"
}
