package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/longctx/longctx/bench/internal/kernels"
	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
)

// quietRoofs makes measuring the roofs short: tests do not look at their size.
func quietRoofs(t testing.TB) {
	bytes, each := roofBytes, roofTime
	roofBytes, roofTime = 8<<20, 5*time.Millisecond
	t.Cleanup(func() { roofBytes, roofTime = bytes, each })
}

var fewKernels = []string{"kernels", "-lengths", "100", "-dims", "64", "-gqa", "2", "-time", "1ms", "-threads", "1"}

func TestKernelsMeasures(t *testing.T) {
	quietRoofs(t)
	dir := t.TempDir()
	jsonFile, plotFile := filepath.Join(dir, "k.json"), filepath.Join(dir, "k.png")
	status, out, text := call(t.Context(), append(fewKernels, "-json", jsonFile, "-plot", plotFile)...)
	if status != 0 {
		t.Fatalf("status %d\n%s\n%s", status, out, text)
	}
	for _, want := range []string{"commit ", "GOMAXPROCS ", "1 thread: FMA ", "memory read ", "go1.", "decode/kv=bf16/d=64/heads=16-8/page=64/n=100", "/exact", "/fast", "% of it"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	data, err := os.ReadFile(jsonFile)
	if err != nil {
		t.Fatal(err)
	}
	var results []kernels.Result
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&results); err != nil {
		t.Fatal(err)
	}
	o, err := parseKernels(streams{t.Output(), t.Output()}, fewKernels[1:])
	if err != nil {
		t.Fatal(err)
	}
	if want := 2 * len(o.axes.Cases(false)); len(results) != want {
		t.Errorf("%d results, want %d", len(results), want)
	}
	for _, r := range results {
		if r.Case == "" || r.Backend != "cpu" || r.Variant == "" || r.Threads != 1 || !(r.GFLOPs > 0 && r.GBps > 0 && r.Roof > 0 && r.Fraction > 0 && r.Median > 0) {
			t.Errorf("%+v", r)
		}
	}
	f, err := os.Open(plotFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := png.Decode(f); err != nil {
		t.Error(err)
	}
}

func TestKernelsBadRequests(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ flag, value, want string }{
		{"-kinds", "prefill,decod", "want some of [prefill decode backward]"},
		{"-lengths", "1k,x", "no number"},
		{"-lengths", "0", "want 1 to"},
		{"-dims", "577", "want 1 to 576"},
		{"-gqa", "0", "want 1 to"},
		{"-dtypes", "f64", "f64"},
		{"-pages", "-1", "no number"},
		{"-causal", "perhaps", "perhaps"},
		{"-threads", "0", "want 1 to 256"},
		{"-policies", "exactly", "exact or fast"},
		{"-variants", "mmx", "best, all or some of"},
		{"-time", "0s", "want more than 0"},
		{"-max", "-1s", "want more than 0"},
		{"-case", "nothing has this", "no case contains"},
		{"-json", filepath.Join(file, "x.json"), "not a directory"},
		{"-plot", filepath.Join(file+"2", "x.png"), "no such file"},
		{"-ggml", filepath.Join(file, "none"), "test-backend-ops"},
	} {
		if status, _, text := call(t.Context(), append(fewKernels, c.flag, c.value)...); status != 1 || !strings.Contains(text, c.want) {
			t.Errorf("%s %s: status %d, %q, want %q", c.flag, c.value, status, text, c.want)
		}
	}
	if status, _, text := call(t.Context(), append(fewKernels, "-peers", "-python", file+"2")...); status != 1 || !strings.Contains(text, "-python") {
		t.Errorf("no Python: status %d, %q", status, text)
	}
	if status, _, text := call(t.Context(), append(fewKernels, "-quik")...); status != 2 || !strings.Contains(text, "-quick") {
		t.Errorf("an unknown flag: status %d, %q", status, text)
	}
}

// interrupter presses Ctrl-C when the second case begins.
type interrupter struct {
	cases int
	stop  func()
}

func (i *interrupter) Contenders(context.Context, kernels.Case, int) ([]*kernels.Contender, error) {
	if i.cases++; i.cases == 2 {
		i.stop()
	}
	return nil, nil
}

func (*interrupter) Close() error { return nil }

func TestInterruptedKernelsPrintsWhatIsFinished(t *testing.T) {
	quietRoofs(t)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	jsonFile := filepath.Join(t.TempDir(), "k.json")
	var out, text bytes.Buffer
	r, err := newKernelRun(streams{&out, &text}, append(fewKernels, "-json", jsonFile)[1:])
	if err != nil {
		t.Fatal(err)
	}
	r.peers = append(r.peers, &interrupter{stop: stop})
	if err := r.run(ctx, streams{&out, &text}); err != context.Canceled {
		t.Errorf("%v, want %v", err, context.Canceled)
	}
	data, err := os.ReadFile(jsonFile)
	var results []kernels.Result
	if err != nil || json.Unmarshal(data, &results) != nil || len(results) != 2 || !strings.Contains(out.String(), results[0].Case) {
		t.Errorf("%v, %s, want the two results of the first case, in\n%s", err, data, &out)
	}
	stopped, cancel := context.WithCancel(t.Context())
	cancel()
	if status, _, text := call(stopped, fewKernels...); status != 130 {
		t.Errorf("stopped before it began: status %d, %s", status, text)
	}
}

// BenchmarkKernels is the quick list of the command, for benchstat. It does not
// check results, which TestKernelsMeasures does.
func BenchmarkKernels(b *testing.B) {
	axes := kernels.Quick([]int{1})
	for _, c := range axes.Cases(false) {
		for _, policy := range []kernel.Policy{kernel.Exact, kernel.Fast} {
			b.Run(fmt.Sprintf("%v/policy=%v", c, policy), func(b *testing.B) {
				backend := cpu.New(cpu.Options{Workers: c.Threads})
				defer backend.Close()
				run, err := kernels.Load(backend, c, policy)
				if err != nil {
					b.Fatal(err)
				}
				for b.Loop() {
					if err := run(); err != nil {
						b.Fatal(err)
					}
				}
				seconds := b.Elapsed().Seconds() / float64(b.N)
				b.ReportMetric(c.FLOP()/seconds/1e9, "GFLOP/s")
				b.ReportMetric(c.Bytes()/seconds/1e9, "GB/s")
			})
		}
	}
}
