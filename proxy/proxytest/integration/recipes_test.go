// The programs of service/RECIPES.md, run as they stand there: straight and through the
// proxy, and what they print is what the page promises.

//go:build linux

package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/amqproxysvc/amqproxysvc/proxy/proxytest/rabbit"
)

// languages are how a program of the page is run, and what must be installed for it.
var languages = map[string]struct {
	file    string
	command []string
	needs   []string
}{
	"php":        {"recipe.php", []string{"php"}, []string{"/usr/share/doc/php-amqp", "/usr/share/php/PhpAmqpLib/autoload.php", "/usr/share/php/Symfony/Component/Messenger/Bridge/Amqp/autoload.php"}},
	"python":     {"recipe.py", []string{"/usr/bin/python3"}, []string{"/usr/lib/python3/dist-packages/pika", "/usr/lib/python3/dist-packages/celery"}},
	"javascript": {"recipe.js", []string{"node"}, []string{filepath.Join(rabbit.CacheDir(), "node/node_modules/amqplib/package.json")}},
	"java":       {"Recipe.java", []string{"java", "-cp", javaPath}, []string{"/usr/share/java/amqp-client.jar", "/usr/share/java/slf4j-simple.jar"}},
}

const javaPath = "/usr/share/java/amqp-client.jar:/usr/share/java/slf4j-api.jar:/usr/share/java/slf4j-simple.jar"

func TestRecipes(t *testing.T) {
	page, err := os.ReadFile("../../../service/RECIPES.md")
	if err != nil {
		t.Fatal(err)
	}
	recipes := recipesOf(string(page))
	if len(recipes) < 9 {
		t.Fatalf("only %d programs found", len(recipes))
	}
	each(t, "", func(t *testing.T, tg *target) {
		for _, r := range recipes {
			t.Run(r.name, func(t *testing.T) { r.run(t, tg) })
		}
	})
}

type recipe struct{ name, language, program, prints string }

// recipesOf finds the programs under their headings, each with the text block that follows it.
func recipesOf(page string) (all []recipe) {
	heading, block := "", ""
	inside := false
	var body strings.Builder
	for line := range strings.Lines(page) {
		switch {
		case strings.HasPrefix(line, "```") && !inside:
			inside, block = true, strings.TrimSpace(line[3:])
			body.Reset()
		case strings.HasPrefix(line, "```"):
			inside = false
			if _, ok := languages[block]; ok {
				all = append(all, recipe{name: heading, language: block, program: body.String()})
			} else if block == "text" && len(all) > 0 {
				all[len(all)-1].prints = body.String()
			}
		case inside:
			body.WriteString(line)
		case strings.HasPrefix(line, "## "):
			heading = strings.TrimSpace(line[3:])
		}
	}
	return all
}

func (r *recipe) run(t *testing.T, tg *target) {
	if r.prints == "" {
		t.Fatal("the page does not say what it prints")
	}
	lang := languages[r.language]
	for _, file := range lang.needs {
		if _, err := os.Stat(file); err != nil {
			rabbit.Skip(t, fmt.Errorf("%s is not installed (`make deps` installs it): %w", r.language, err))
		}
	}
	// The page's address is the one that clients have; a broker of the tests has another port.
	if !strings.Contains(r.program, "5673") {
		t.Fatal("the program names no port 5673")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, lang.file)
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(r.program, "5673", tg.port())), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, lang.command[0], append(lang.command[1:len(lang.command):len(lang.command)], file)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "NODE_PATH="+filepath.Join(rabbit.CacheDir(), "node/node_modules"), "C_FORCE_ROOT=1")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s%s", err, stdout.String(), stderr.String())
	}
	if stdout.String() != r.prints {
		t.Errorf("it prints %q, the page says %q\n%s", stdout.String(), r.prints, stderr.String())
	}
}
