// The manifests, decoded strictly into Kubernetes' own types, and what the types cannot say:
// labels that meet, ports that are there, times and memory that add up, settings that the proxy
// takes. What a cluster does with them is not shown here.
package check

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/yaml"

	"github.com/amqproxysvc/amqproxysvc/service/config"
)

// kinds are what the manifests may hold.
var kinds = map[string]func() any{
	"apps/v1 Deployment":                  func() any { return &apps.Deployment{} },
	"apps/v1 DaemonSet":                   func() any { return &apps.DaemonSet{} },
	"v1 ConfigMap":                        func() any { return &core.ConfigMap{} },
	"v1 Service":                          func() any { return &core.Service{} },
	"policy/v1 PodDisruptionBudget":       func() any { return &policy.PodDisruptionBudget{} },
	"networking.k8s.io/v1 NetworkPolicy":  func() any { return &networking.NetworkPolicy{} },
	"monitoring.coreos.com/v1 PodMonitor": func() any { return &monitoring.PodMonitor{} },
}

// manifests decodes all of them: an unknown or a repeated field is an error.
func manifests(t *testing.T) (all map[string][]any) {
	t.Helper()
	files, err := filepath.Glob("../*.yaml")
	if err != nil || len(files) < 4 {
		t.Fatalf("only %q found: %v", files, err)
	}
	all = map[string][]any{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for doc := range strings.SplitSeq(string(text), "\n---\n") {
			var what meta.TypeMeta
			if err := yaml.Unmarshal([]byte(doc), &what); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			make := kinds[what.APIVersion+" "+what.Kind]
			if make == nil {
				t.Fatalf("%s: %s %s is not among the kinds that are checked", file, what.APIVersion, what.Kind)
			}
			into := make()
			if err := yaml.UnmarshalStrict([]byte(doc), into); err != nil {
				t.Fatalf("%s: %s: %v", file, what.Kind, err)
			}
			all[filepath.Base(file)] = append(all[filepath.Base(file)], into)
		}
	}
	return all
}

// of gives the one manifest of a type in a file.
func of[T any](t *testing.T, file []any) T {
	t.Helper()
	var found []T
	for _, m := range file {
		if m, ok := m.(T); ok {
			found = append(found, m)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d of %T, want one", len(found), *new(T))
	}
	return found[0]
}

// proxyOf is the proxy's container and the pod that it stands in.
func proxyOf(t *testing.T, file []any) (pod core.PodTemplateSpec, proxy core.Container, selector *meta.LabelSelector) {
	t.Helper()
	for _, m := range file {
		switch m := m.(type) {
		case *apps.Deployment:
			pod, selector = m.Spec.Template, m.Spec.Selector
		case *apps.DaemonSet:
			pod, selector = m.Spec.Template, m.Spec.Selector
		}
	}
	for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		if c.Name == "amqproxysvc" {
			return pod, c, selector
		}
	}
	t.Fatal("no container of the proxy")
	return
}

// settingsOf is what the proxy runs with: the image's environment, the container's, its
// arguments, and the file of the ConfigMap.
func settingsOf(t *testing.T, file []any, c core.Container) config.Settings {
	t.Helper()
	image, err := os.ReadFile("../../tools/image/main.go")
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	list := regexp.MustCompile(`Env:\s*\[\]string\{(.*)\}`).FindStringSubmatch(string(image))
	if list == nil {
		t.Fatal("packaging/tools/image names no environment")
	}
	for _, pair := range regexp.MustCompile(`"([A-Z_]+)=([^"]*)"`).FindAllStringSubmatch(list[1], -1) {
		env[pair[1]] = pair[2]
	}
	for _, e := range c.Env {
		env[e.Name] = e.Value
	}
	src := config.Source{Env: func(name string) (string, bool) { v, ok := env[name]; return v, ok }}
	for i, arg := range c.Args {
		switch {
		case arg == "--config":
			toml := of[*core.ConfigMap](t, file).Data[filepath.Base(c.Args[i+1])]
			if mount := c.VolumeMounts; len(mount) != 1 || filepath.Dir(c.Args[i+1]) != mount[0].MountPath {
				t.Errorf("%s is not where the settings are mounted: %+v", c.Args[i+1], mount)
			}
			src.File = filepath.Join(t.TempDir(), "amqproxysvc.toml")
			if err := os.WriteFile(src.File, []byte(toml), 0o644); err != nil {
				t.Fatal(err)
			}
		case strings.HasPrefix(arg, "--set="):
			name, value, _ := strings.Cut(strings.TrimPrefix(arg, "--set="), "=")
			setting := config.Find(name)
			if setting == nil {
				t.Fatalf("%s: there is no such setting", arg)
			}
			src.CommandLine = append(src.CommandLine, config.Override{Setting: setting, Value: value, Origin: "--set"})
		case i > 0 && c.Args[i-1] == "--config":
		default:
			t.Errorf("the argument %q is not looked at here", arg)
		}
	}
	s, warnings, err := config.Load(src)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range append(warnings, s.Warnings()...) {
		if !strings.Contains(w, "listens") && !strings.Contains(w, "http.address") { // it does so on purpose, see the NetworkPolicy
			t.Errorf("the proxy warns: %s", w)
		}
	}
	return s
}

func TestProxies(t *testing.T) {
	all := manifests(t)
	for _, name := range []string{"deployment.yaml", "daemonset.yaml", "sidecar.yaml"} {
		t.Run(name, func(t *testing.T) {
			file := all[name]
			pod, c, selector := proxyOf(t, file)
			s := settingsOf(t, file, c)

			if sel, err := meta.LabelSelectorAsSelector(selector); err != nil || !sel.Matches(labels.Set(pod.Labels)) {
				t.Errorf("the selector does not choose the template's own pods: %v", err)
			}
			ends := s.DrainDelay + s.Engine.DrainTimeout + s.TermTimeout
			if grace := time.Duration(*pod.Spec.TerminationGracePeriodSeconds) * time.Second; grace < ends+5*time.Second {
				t.Errorf("a stop may take %v, and 5 s; the pod has %v", ends, grace)
			}
			e := s.Engine
			if e.MaxClients == 0 || e.MaxUpstreams == 0 {
				t.Error("clients or connections to the broker are not bounded, so that memory is not")
			}
			need := e.MessageBuffer + e.ClientQueues + int64(e.MaxClients)<<18 + int64(e.MaxHandshakes)<<14 + int64(e.MaxUpstreams)<<20 + 40<<20
			if has := c.Resources.Limits.Memory().Value() * 9 / 10; need > has {
				t.Errorf("the settings let it use %d MiB, nine tenths of its limit are %d MiB", need>>20, has>>20)
			}
			if got := s.HTTP.Address; got != "0.0.0.0" {
				t.Errorf("health is served on %s, where the kubelet does not ask", got)
			}
			sec := c.SecurityContext
			user := sec.RunAsUser
			if user == nil {
				user = pod.Spec.SecurityContext.RunAsUser
			}
			if *user != 65532 || !*sec.ReadOnlyRootFilesystem || *sec.AllowPrivilegeEscalation || len(sec.Capabilities.Drop) != 1 || sec.Capabilities.Drop[0] != "ALL" {
				t.Errorf("it may more than it needs: %+v", sec)
			}
			ports := map[string]int32{}
			for _, p := range c.Ports {
				ports[p.Name] = p.ContainerPort
			}
			if ports["http"] != int32(s.HTTP.Port) || name != "sidecar.yaml" && ports["amqp"] != int32(s.Listeners[0].Port) {
				t.Errorf("the ports are %v, it listens on %d and %d", ports, s.Listeners[0].Port, s.HTTP.Port)
			}
			for what, probe := range map[string]*core.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe} {
				if probe == nil || probe.HTTPGet.Path != "/healthz" || probe.HTTPGet.Port.StrVal != "http" {
					t.Errorf("the %s probe is %+v: it may not ask for the broker, whose absence would restart the proxy", what, probe)
				}
			}
			if name == "sidecar.yaml" {
				if c.RestartPolicy == nil || *c.RestartPolicy != core.ContainerRestartPolicyAlways || c.ReadinessProbe != nil || s.Listeners[0].Address != "127.0.0.1" {
					t.Errorf("no native sidecar for its pod alone: %+v", c)
				}
				return
			}
			if c.ReadinessProbe == nil || c.ReadinessProbe.HTTPGet.Path != "/readyz" || s.Engine.ConnectTimeout >= time.Duration(c.ReadinessProbe.TimeoutSeconds)*time.Second {
				t.Errorf("the readiness probe is %+v: /readyz, with more patience than connect_timeout", c.ReadinessProbe)
			}
			if s.DrainDelay == 0 {
				t.Error("a pod that ends refuses whom it is still sent: drain_delay is 0")
			}
			service := of[*core.Service](t, file)
			if !labels.SelectorFromSet(service.Spec.Selector).Matches(labels.Set(pod.Labels)) || service.Spec.Ports[0].TargetPort.StrVal != "amqp" {
				t.Errorf("the service leads elsewhere: %+v", service.Spec)
			}
			monitor := of[*monitoring.PodMonitor](t, all["podmonitor.yaml"])
			if sel, err := meta.LabelSelectorAsSelector(&monitor.Spec.Selector); err != nil || !sel.Matches(labels.Set(pod.Labels)) {
				t.Errorf("the PodMonitor does not choose these pods: %v", err)
			}
		})
	}
}

func TestDeploymentsNeighbours(t *testing.T) {
	all := manifests(t)
	file := all["deployment.yaml"]
	pod, c, _ := proxyOf(t, file)
	s := settingsOf(t, file, c)
	budget, d := of[*policy.PodDisruptionBudget](t, file), of[*apps.Deployment](t, file)
	if sel, err := meta.LabelSelectorAsSelector(budget.Spec.Selector); err != nil || !sel.Matches(labels.Set(pod.Labels)) {
		t.Errorf("the budget does not choose these pods: %v", err)
	}
	if budget.Spec.MinAvailable.IntVal >= *d.Spec.Replicas {
		t.Error("the budget lets no node be drained")
	}
	network := of[*networking.NetworkPolicy](t, file)
	if sel, err := meta.LabelSelectorAsSelector(&network.Spec.PodSelector); err != nil || !sel.Matches(labels.Set(pod.Labels)) {
		t.Errorf("the network policy does not choose these pods: %v", err)
	}
	var open []int32
	for _, rule := range network.Spec.Ingress {
		if len(rule.From) == 0 {
			t.Errorf("anybody may reach %+v", rule.Ports)
		}
		for _, p := range rule.Ports {
			open = append(open, p.Port.IntVal)
		}
	}
	if len(open) != 2 || open[0] != int32(s.Listeners[0].Port) || open[1] != int32(s.HTTP.Port) {
		t.Errorf("open are %v", open)
	}
	broker := false
	for _, rule := range network.Spec.Egress {
		for _, p := range rule.Ports {
			broker = broker || p.Port.IntVal == int32(s.Broker.Port)
		}
	}
	if !broker {
		t.Errorf("the broker's port %d may not be reached", s.Broker.Port)
	}
}
