// What the Windows service control manager is told of the service, as plain data: the
// command line, recovery, account, SID and access lists. Kept apart from the calls, so that
// it is tested on every system.

package service

import (
	"crypto/sha1" // the algorithm of service SIDs, nothing is protected by it
	"encoding/binary"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf16"
)

// scmSettings are the settings of an installed service.
type scmSettings struct {
	DisplayName, Description string
	// ImagePath is the command line, the program's path always quoted: unquoted, a path
	// with spaces lets another program be started in its place.
	ImagePath string
	// Account runs the service, without password.
	Account string
	// DelayedAutoStart: at boot, after what has to come first.
	DelayedAutoStart bool
	// UnrestrictedSID puts the service's own SID into its token, for the access lists.
	UnrestrictedSID bool
	// Recovery are the restarts after failures in a row; the last repeats.
	Recovery []time.Duration
	// RecoveryReset is how long without failure starts Recovery from the first again.
	RecoveryReset time.Duration
	// RecoverOnError also restarts a service that ended with an error code, not only one
	// whose process died (the "failure flag").
	RecoverOnError bool
	// PreShutdown is how long the machine waits for the service when it goes down.
	PreShutdown time.Duration
}

// scmArguments are what the program is started with.
func scmArguments(name, config string) []string {
	return []string{"run", "--service", "--name", name, "--config", config}
}

// scmSettingsFor is what a service called name is installed with. drain is the
// configuration's drain timeout.
func scmSettingsFor(name, executable, config, account string, drain time.Duration) scmSettings {
	return scmSettings{
		DisplayName:      scmDisplayName(name),
		Description:      description,
		ImagePath:        commandLine(executable, scmArguments(name, config)),
		Account:          account,
		DelayedAutoStart: true,
		UnrestrictedSID:  true,
		Recovery:         []time.Duration{5 * time.Second, 15 * time.Second, 60 * time.Second},
		RecoveryReset:    24 * time.Hour,
		RecoverOnError:   true,
		PreShutdown:      drain + 2*drainGrace,
	}
}

// scmDisplayName differs for each instance: the SCM refuses a second one of the same.
func scmDisplayName(name string) string {
	if name == DefaultName {
		return displayName
	}
	return displayName + " (" + name + ")"
}

// virtualAccount is the account that Windows keeps for a service by itself.
func virtualAccount(name string) string { return `NT SERVICE\` + name }

// commandLine quotes as CommandLineToArgvW reads, the program's path in any case.
func commandLine(executable string, args []string) string {
	var b strings.Builder
	b.WriteString(`"` + executable + `"`)
	for _, arg := range args {
		b.WriteByte(' ')
		if arg != "" && !strings.ContainsAny(arg, " \t\"") {
			b.WriteString(arg)
			continue
		}
		b.WriteByte('"')
		backslashes := 0
		for i := range len(arg) {
			switch arg[i] {
			case '\\':
				backslashes++
			case '"':
				b.WriteString(strings.Repeat(`\`, backslashes+1))
				backslashes = 0
			default:
				backslashes = 0
			}
			b.WriteByte(arg[i])
		}
		b.WriteString(strings.Repeat(`\`, backslashes) + `"`)
	}
	return b.String()
}

// serviceSID is the SID of NT SERVICE\name: S-1-5-80 and the SHA-1 of the name in capitals,
// UTF-16LE, as five numbers. It exists before the service does.
func serviceSID(name string) string {
	var raw []byte
	for _, u := range utf16.Encode([]rune(strings.ToUpper(name))) {
		raw = binary.LittleEndian.AppendUint16(raw, u)
	}
	sum := sha1.Sum(raw)
	sid := "S-1-5-80"
	for i := 0; i < len(sum); i += 4 {
		sid += fmt.Sprintf("-%d", binary.LittleEndian.Uint32(sum[i:]))
	}
	return sid
}

// Access lists in SDDL. O:BA: owned by Administrators, since whoever owns a directory could
// change its list, and any user may create one in ProgramData. P: nothing inherited from there.
const (
	sddlRoot   = "O:BAD:PAI(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)(A;;0x1200a9;;;BU)"
	aclRead    = "0x1200a9" // FILE_GENERIC_READ | FILE_GENERIC_EXECUTE
	aclModify  = "0x1301bf" // read, write, delete; not the list itself
	aclReaders = `\(A;OICI;0x1200a9;;;(S-1-5-80-[0-9-]+)\)`
)

var readersACE = regexp.MustCompile(aclReaders)

// sddlConfigDir is the list of the directory that all instances share: each service may
// read in it. current is the list it has now, whose other instances stay.
func sddlConfigDir(current, sid string) string {
	sids := []string{sid}
	for _, m := range readersACE.FindAllStringSubmatch(current, -1) {
		if !slices.Contains(sids, m[1]) {
			sids = append(sids, m[1])
		}
	}
	slices.Sort(sids)
	list := sddlRoot
	for _, s := range sids {
		list += "(A;OICI;" + aclRead + ";;;" + s + ")"
	}
	return list
}

// sddlWithout is the list of the shared directory once the instance with sid has gone.
func sddlWithout(current, sid string) string {
	return strings.ReplaceAll(current, "(A;OICI;"+aclRead+";;;"+sid+")", "")
}

// sddlWritable is the list of a directory into which one service writes: its logs, its state.
func sddlWritable(sid string) string {
	return sddlRoot + "(A;OICI;" + aclModify + ";;;" + sid + ")"
}

// sddlStateDir lets any user read the state too: `status` needs no rights.
func sddlStateDir(sid string) string {
	return strings.Replace(sddlWritable(sid), "(A;;0x1200a9;;;BU)", "(A;OICI;0x1200a9;;;BU)", 1)
}
