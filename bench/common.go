package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/longctx/longctx/bench/assets"
	"github.com/longctx/longctx/bench/internal/model"
	"github.com/longctx/longctx/bench/internal/safetensors"
	"github.com/longctx/longctx/bench/internal/text"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
)

// host opens a backend whose tensors lie in host memory, as the model's do:
// the CPU's, with so many workers. The matrix products take as many.
func host(workers int) (b *cpu.Backend, restore func(), err error) {
	if workers < 0 {
		return nil, nil, fmt.Errorf("-workers is %d, want 0 (all processors) or more", workers)
	}
	if workers == 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	before := runtime.GOMAXPROCS(workers)
	b = cpu.New(cpu.Options{Workers: workers})
	return b, func() { b.Close(); runtime.GOMAXPROCS(before) }, nil
}

func parsePolicy(name string) (kernel.Policy, error) {
	for _, p := range []kernel.Policy{kernel.Exact, kernel.Fast} {
		if strings.EqualFold(name, p.String()) {
			return p, nil
		}
	}
	return 0, fmt.Errorf("-policy is %q, want exact or fast", name)
}

// loadModel reads the named model, or the one that comes with bench.
func loadModel(path string) (m *model.Model, source string, err error) {
	if path != "" {
		m, err = model.Load(path)
		return m, path, err
	}
	f, err := safetensors.Decode(assets.Model)
	if err == nil {
		m, err = model.FromFile(f)
	}
	if err != nil {
		return nil, "", fmt.Errorf("the model that comes with bench: %w", err)
	}
	return m, "bench/assets/model.safetensors", nil
}

// loadText reads the named text, or the one that comes with bench.
func loadText(path string, need int) (data []byte, source string, err error) {
	if path != "" {
		data, err = text.Read(path, need)
		return data, path, err
	}
	data, err = text.Expand(assets.HeldOut)
	if err == nil && len(data) < need {
		err = fmt.Errorf("%d bytes, want at least %d for the lengths asked for: give a longer one with -text", len(data), need)
	}
	if err != nil {
		return nil, "", fmt.Errorf("the text that comes with bench: %w", err)
	}
	return data, "bench/assets/heldout.txt.gz", nil
}

// machine describes where a run takes place.
func machine(b kernel.Backend) map[string]string {
	facts := map[string]string{
		"processor": processor(),
		"cores":     fmt.Sprintf("%d of %d used", runtime.GOMAXPROCS(0), runtime.NumCPU()),
		"os":        runtime.GOOS + "/" + runtime.GOARCH,
		"go":        runtime.Version(),
		"backend":   b.Name(),
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if (s.Key == "-tags" || s.Key == "vcs.revision") && s.Value != "" {
				facts[s.Key] = s.Value
			}
		}
	}
	return facts
}

// processor is its name, where the system tells.
func processor() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, value, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

// parseLengths reads lengths in tokens, or with a suffix x in multiples of the
// trained length.
func parseLengths(list string, trained int) ([]int, error) {
	var out []int
	for word := range strings.SplitSeq(list, ",") {
		word = strings.ToLower(strings.TrimSpace(word))
		number, multiple := strings.CutSuffix(strings.TrimSuffix(word, "×"), "x")
		multiple = multiple || strings.HasSuffix(word, "×")
		n, err := strconv.Atoi(number)
		if multiple && n <= 1<<16 {
			n *= trained
		}
		if err != nil || n < trained || n > 1<<22 || len(out) > 0 && n <= out[len(out)-1] {
			return nil, fmt.Errorf("-lengths is %q, want ascending numbers of tokens, or multiples such as 4x, from the trained length %d to %d", list, trained, 1<<22)
		}
		out = append(out, n)
	}
	return out, nil
}
