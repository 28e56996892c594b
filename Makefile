# Everything that is done with this tree has a target here; `make help` lists them.
# Variables: VERSION, FULL=1 (long counts), QUICK=1, BROKER=amqp://…, PEERS=name=host:port,
# FUZZTIME, SOAKTIME, ABUSETIME, CROWD, HELD, RUN (a pattern of test names), PKG (what test-unit tests),
# AMQPROXYSVC_TEST_CACHE.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VERSION ?= $(shell ./packaging/version 2>/dev/null || echo 0.0.0)
FUZZTIME ?= 10000x
SOAKTIME ?= 10m
ABUSETIME ?= 10m
CROWD ?= 100000
HELD ?= 10m
RUN ?= .
PKG ?= ./...

BIN := dist/bin
LDFLAGS := -s -w -X main.version=$(VERSION)
GOBUILD := CGO_ENABLED=0 GOAMD64=v1 go build -trimpath -buildvcs=auto -ldflags '$(LDFLAGS)'
GOTEST := go run ./proxy/proxytest/cmd/gotest
MODULES := . proxy/proxytest/integration
export FULL RUN SOAKTIME

# Cross builds that must work: system/processor.
PLATFORMS := linux/amd64 linux/arm64 windows/amd64

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## the static binary for this machine, in dist/bin
	$(GOBUILD) -o $(BIN)/ ./cmd/amqproxysvc

.PHONY: deps
deps: ## install what the tests need: brokers, clients, haproxy (root; else says what is missing)
	@./proxy/proxytest/rabbit/install >/dev/null

.PHONY: deps-clean
deps-clean: ## remove the tests' cache: roots, brokers, what was downloaded (packages of apt stay)
	@./proxy/proxytest/rabbit/install --clean

.PHONY: test
test: deps lint cross static test-unit test-locks page kubernetes fuzz test-integration test-hostile ## all checks but those of service and packages
	@echo "make test: all passed"

.PHONY: lint
lint: tools ## gofmt, go vet (linux, windows), staticcheck, errcheck, ineffassign
	@bad=$$(git ls-files -z -- '*.go' | xargs -0 -r sh -c 'for f; do [ ! -e "$$f" ] || echo "$$f"; done' sh | xargs -r gofmt -l); \
	  if [ -n "$$bad" ]; then echo "gofmt -w is needed on:"; echo "$$bad"; exit 1; fi
	@echo "go vet, for windows and here"
	@GOOS=windows go vet ./...
	@for m in $(MODULES); do go -C $$m vet ./...; done
	@export PATH="$$PWD/$(BIN)/tools:$$PATH" checks=$$(sed -n 's/^ *checks: *\(\[.*\]\).*/\1/p' .golangci.yml | tr -d '[]" '); \
	  excludes=$$PWD/proxy/proxytest/tools/errcheck-excludes.txt; \
	  echo "staticcheck, for windows"; GOOS=windows staticcheck -checks "$$checks,-U1000" ./...; \
	  for m in $(MODULES); do echo "staticcheck, errcheck, ineffassign in $$m"; ( cd $$m; staticcheck -checks "$$checks" ./...; \
	  errcheck -ignoretests -exclude "$$excludes" ./...; ineffassign ./... ); done
	@echo "lint: clean"

.PHONY: tools
tools:
	@mkdir -p $(BIN)/tools
	@[ -x $(BIN)/tools/staticcheck ] || echo "building the checkers (minutes, the first time)"
	@go -C proxy/proxytest/tools build -o "$$PWD/$(BIN)/tools/" tool

.PHONY: cross
cross: ## build every package for every system and processor
	@for p in $(PLATFORMS); do echo "build $$p"; \
	  GOOS=$${p%/*} GOARCH=$${p#*/} CGO_ENABLED=0 go build ./...; done

.PHONY: static
static: build ## check that the Linux binary needs no library
	@if ldd $(BIN)/amqproxysvc >/dev/null 2>&1; then echo "$(BIN)/amqproxysvc is linked to libraries:"; ldd $(BIN)/amqproxysvc; exit 1; fi
	@$(BIN)/amqproxysvc --version

.PHONY: test-unit
test-unit: ## unit tests and hazards, with the race detector (PKG=./proxy RUN=TestPool: some)
	$(GOTEST) -race -timeout 45m -run '$(RUN)' $(PKG)
	@go -C packaging/tools test ./...

.PHONY: page
page: deps ## the live page in a headless Chromium: nothing wider than the window, an empty console; pictures in dist/page (FULL=1: an hour of events, too)
	PAGE=1 $(GOTEST) -timeout 15m -run '^Test(PageInABrowser|AnHourOfEvents)$$' ./cmd/amqproxysvc

.PHONY: test-locks
test-locks: ## the engine's unit tests, with the order looked after in which mutexes are taken
	$(GOTEST) -tags lockrank ./proxy/lock ./proxy/outbox ./proxy

.PHONY: kubernetes
kubernetes: ## the manifests of packaging/kubernetes against Kubernetes' own types
	@go -C packaging/kubernetes/check test -count=1 ./...

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME each: a number of runs (10000x) or a time (10m)
	@for pkg in $$(go list ./...); do \
	  for f in $$(go test -list '^Fuzz' $$pkg | grep '^Fuzz' || true); do \
	    echo "$$pkg $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x -parallel 2 $$pkg | tail -n 12; done; done

.PHONY: test-integration
test-integration: ## real clients through the proxy to RabbitMQ 3.10, 4.0 and, in part, 4.3 (FULL=1: all, long counts)
	$(GOTEST) -C proxy/proxytest/integration -race -timeout 60m -run '$(RUN)' ./...

.PHONY: test-tier
test-tier: ## three proxies behind HAProxy, 30,000 clients, one proxy killed: minutes
	FULL=1 $(GOTEST) -C proxy/proxytest/integration -timeout 15m -v -run '^TestTier$$' ./...

.PHONY: test-cluster
test-cluster: ## three nodes drained, restarted, killed, cut off under load, spread, hold for PHP, blue and green: minutes (CLUSTER=3.10: that version)
	CLUSTER=$(or $(CLUSTER),4.0) $(GOTEST) -C proxy/proxytest/integration -timeout 30m -run '^Test(Cluster|HoldForPHP|BlueGreen|SpreadOfMessages)$$' ./...

# The hostile cases that count and do not measure: a loaded machine spoils the others.
.PHONY: test-hostile
test-hostile: ## brokers and tenants that mean harm: what needs no quiet machine
	HOSTILE=1 $(GOTEST) -timeout 20m -run '^Test(HostileBrokers|ExclusiveIsOnesOwn|HardErrorsAgain)$$' ./proxy/proxytest/hostile

.PHONY: hostile
hostile: ## strangers, tenants and brokers that mean harm, beside canaries (FULL=1: long counts)
	HOSTILE=1 $(GOTEST) -timeout 120m -run '$(RUN)' ./proxy/proxytest/hostile

.PHONY: abuse
abuse: ## all that means harm at once, beside tenants, before a broker with faults, ABUSETIME long, with -race
	HOSTILE=1 ABUSETIME=$(ABUSETIME) $(GOTEST) -timeout 0 -run '^TestAbuse$$' ./proxy/proxytest/hostile

.PHONY: test-service
test-service: ## the service under a booted systemd and under Wine
	@if [ -x service/testbed/run ]; then ./service/testbed/run; else echo "SKIPPED LOUDLY: service/testbed/run is not there"; exit 1; fi

.PHONY: test-packages
test-packages: ## packages installed, upgraded and removed in booted systems and under Wine
	@if [ -x packaging/test/run ]; then ./packaging/test/run; else echo "SKIPPED LOUDLY: packaging/test/run is not there"; exit 1; fi

.PHONY: compat
compat: deps ## the client libraries' own test suites, straight and through the proxy: a table
	@go run ./proxy/proxytest/compat $(COMPAT)

.PHONY: soak
soak: ## hours of mixed traffic with faults, SOAKTIME long
	SOAK=1 $(GOTEST) -C proxy/proxytest/integration -race -timeout 0 -run '^TestSoak$$' ./...

.PHONY: demo
demo: ## one message per connection over 50 ms, straight and pooled (BROKER=amqp://…: with yours)
	@go build -o dist/bin/demo ./proxy/proxytest/cmd/demo
	@dist/bin/demo $(if $(BROKER),-broker '$(BROKER)')

.PHONY: bench
bench: ## speed beside HAProxy (QUICK=1: under a minute; PEERS=name=host:port: others too; BROKER=amqp://host:port: connects there too)
	@go run ./proxy/proxytest/cmd/bench $(if $(QUICK),-quick) $(if $(PEERS),-peers '$(PEERS)') $(if $(BROKER),-broker '$(BROKER)')

.PHONY: crowd
crowd: ## CROWD=100000 idle clients for HELD=10m, as many proxies as descriptors ask for, one killed and started again
	@go run ./proxy/proxytest/cmd/bench -crowd $(CROWD) -held $(HELD)

.PHONY: brokers
brokers: ## start RabbitMQ 3.10, 4.0 and 4.3 for your own use, until Ctrl-C
	@go run ./proxy/proxytest/cmd/brokers

.PHONY: packages
packages: ## deb, rpm, tar.gz, zip, MSI in dist/
	./packaging/build

.PHONY: image
image: ## the container image for amd64 and arm64, an OCI archive in dist/
	./packaging/image

.PHONY: repo
repo: ## signed apt and yum repositories in dist/
	./packaging/repo

.PHONY: release
release: ## VERSION=1.2.3: checks, tag, everything built, sums, signatures, notes; nothing is published
	./packaging/release

.PHONY: machine
machine: ## a booted Debian with this tree's service in it, and a shell (root; SUITE=, UPSTREAM=, HOSTNET=1)
	./packaging/machine

.PHONY: clean
clean: ## remove what was built
	rm -rf dist
