// The systemd unit: one text, embedded here, shipped by the packages as it is, and written
// by `install` with its own paths and user in place.

package service

import (
	_ "embed"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strings"
	"unicode"
)

// UnitText is the unit as the packages ship it.
//
//go:embed amqproxysvc.service
var UnitText string

// TemplateUnitText is the unit for several instances as the packages ship it.
//
//go:embed amqproxysvc@.service
var TemplateUnitText string

// SysusersText makes the user that the unit names.
//
//go:embed amqproxysvc.sysusers
var SysusersText string

// What UnitText says and `install` may say otherwise.
const (
	DefaultName    = "amqproxysvc"
	unitExecutable = "/usr/bin/amqproxysvc"
	unitConfigDir  = "/etc/amqproxysvc"
	unitConfig     = unitConfigDir + "/amqproxysvc.toml"
	unitUser       = "amqproxysvc"
)

// unitParams are the places where an installed unit may differ from UnitText.
type unitParams struct {
	Executable, Config, User, Group string
}

// renderUnit is UnitText with p in place. With the packages' own values it is UnitText.
func renderUnit(p unitParams) (string, error) {
	exec, err := unitQuote(p.Executable, false)
	if err != nil {
		return "", fmt.Errorf("the program's path: %w", err)
	}
	config, err := unitQuote(p.Config, true)
	if err != nil {
		return "", fmt.Errorf("the configuration's path: %w", err)
	}
	for what, name := range map[string]string{"user": p.User, "group": p.Group} {
		if !accountName.MatchString(name) {
			return "", fmt.Errorf("the %s is %q, allowed are letters, digits, '_', '-' and '.'", what, name)
		}
	}
	text := strings.NewReplacer(
		"="+unitExecutable+" ", "="+exec+" ",
		" "+unitConfig+"\n", " "+config+"\n",
		"User="+unitUser+"\n", "User="+p.User+"\n",
		"Group="+unitUser+"\n", "Group="+p.Group+"\n",
	).Replace(UnitText)
	return text, nil
}

var (
	accountName  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)
	instanceName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]*$`)
)

// checkName reports whether name can be a service's on both systems.
func checkName(name string) error {
	if len(name) > 80 || !instanceName.MatchString(name) {
		return &ExitError{Code: ExitUsage, Err: fmt.Errorf("--name: the name is %q, allowed are up to 80 letters, digits, '_', '-' and '.', a letter or digit first", name)}
	}
	return nil
}

// unitQuote writes a path as one word of a unit's command line. An argument also expands
// variables, the program's own path does not.
func unitQuote(file string, argument bool) (string, error) {
	if !path.IsAbs(file) {
		return "", fmt.Errorf("%q is not absolute", file)
	}
	if strings.ContainsFunc(file, unicode.IsControl) {
		return "", errors.New("it contains a control character")
	}
	out := strings.NewReplacer(`%`, `%%`, `\`, `\\`, `"`, `\"`).Replace(file)
	if argument {
		out = strings.ReplaceAll(out, `$`, `$$`)
	}
	if strings.ContainsAny(file, " '\"\\;") {
		out = `"` + out + `"`
	}
	return out, nil
}
