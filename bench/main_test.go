package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/bench/internal/report"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/recurrence"
)

// call runs a command line.
func call(ctx context.Context, args ...string) (status int, out, errors string) {
	var o, e bytes.Buffer
	status = run(ctx, streams{&o, &e}, args)
	return status, o.String(), e.String()
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{nil, {"help"}, {"-h"}} {
		if status, out, _ := call(t.Context(), args...); status != 0 || !strings.Contains(out, "extrapolate") {
			t.Errorf("%v: status %d, %q", args, status, out)
		}
	}
	for _, args := range [][]string{{"extrapolat"}, {"extrapolate", "-metods", "x"}, {"methods", "x"}} {
		if status, _, text := call(t.Context(), args...); status != 2 || text == "" {
			t.Errorf("%v: status %d, %q", args, status, text)
		}
	}
	if status, out, _ := call(t.Context(), "methods"); status != 0 || !strings.Contains(out, "arxiv.org/abs/2309.00071") {
		t.Errorf("methods: status %d, %q", status, out)
	}
}

func TestModulesAreListed(t *testing.T) {
	status, out, _ := call(t.Context(), "modules")
	_, text, _ := call(t.Context(), "modules", "-json")
	var lines []moduleLine
	if err := json.Unmarshal([]byte(text), &lines); err != nil || status != 0 {
		t.Fatalf("status %d, %v", status, err)
	}
	if got, want := len(lines), len(attention.Modules())+len(recurrence.All()); got != want || strings.Count(out, "\n") != want+1 {
		t.Errorf("%d modules, want %d:\n%s", got, want, out)
	}
	for _, m := range lines {
		if !strings.Contains(out, m.Name) || !strings.Contains(out, m.Paper) {
			t.Errorf("%s is not in the table", m.Name)
		}
		if m.Name == "rerope" && strings.Join(m.Methods, " ") != "rerope rerope+logn" {
			t.Errorf("rerope is in %v", m.Methods)
		}
	}
}

func TestBadRequestsSayWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	short := filepath.Join(dir, "short")
	if err := os.WriteFile(short, []byte("short"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-methods", "rop"}, "have all, positions, quick"},
		{[]string{"-lengths", "64"}, "-lengths"},
		{[]string{"-lengths", "4x,2x"}, "ascending"},
		{[]string{"-lengths", "4096x"}, "give a longer one"},
		{[]string{"-policy", "exactly"}, "exact or fast"},
		{[]string{"-trials", "15"}, "multiple of 10"},
		{[]string{"-workers", "-1"}, "-workers"},
		{[]string{"-text", short}, "5 bytes, want at least"},
		{[]string{"-text", short + "er"}, "no such file"},
		{[]string{"-model", short}, "truncated"},
		{[]string{"-out", short}, "not a directory"},
	} {
		args := append([]string{"extrapolate", "-out", filepath.Join(dir, "out")}, c.args...)
		if status, _, text := call(t.Context(), args...); status != 1 || !strings.Contains(text, c.want) {
			t.Errorf("%v: status %d, %q, want %q", c.args, status, text, c.want)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "out")); err == nil {
		t.Error("a bad request left a folder behind")
	}
}

func readRun(t *testing.T, dir string) report.Run {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r report.Run
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// The model that comes with bench reads at its trained length, and RoPE fails
// at four times that where a window does not.
func TestExtrapolateMeasures(t *testing.T) {
	dir := t.TempDir()
	args := []string{"extrapolate", "-out", dir, "-methods", "rope,window,streaming-llm", "-lengths", "128,4x", "-windows", "3", "-trials", "10"}
	status, out, text := call(t.Context(), args...)
	if status != 0 || !strings.Contains(out, "streaming-llm") {
		t.Fatalf("status %d\n%s\n%s", status, out, text)
	}
	r := readRun(t, dir)
	bits := map[string]float64{}
	for _, p := range r.Results {
		if p.Length == 512 {
			bits[p.Method] = p.BitsPerByte
		} else if p.BitsPerByte > 3 {
			t.Errorf("%s at the trained length: %.2f bits per byte", p.Method, p.BitsPerByte)
		}
	}
	if r.Partial || len(r.Results) != 6 || !(bits["rope"] > 3.5 && bits["window"] < 3 && bits["streaming-llm"] < 3) {
		t.Errorf("partial %v, %v", r.Partial, r.Results)
	}
	for _, name := range []string{"report.html", "results.csv"} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestInterruptedRunWritesWhatIsFinished(t *testing.T) {
	dir := t.TempDir()
	ctx, stop := context.WithCancel(t.Context())
	stop()
	status, _, text := call(ctx, "extrapolate", "-out", dir, "-methods", "rope", "-lengths", "1x", "-windows", "1", "-trials", "10")
	if status != 130 {
		t.Fatalf("status %d: %s", status, text)
	}
	if r := readRun(t, dir); !r.Partial || len(r.Results) != 0 {
		t.Errorf("partial %v with %d results", r.Partial, len(r.Results))
	}
}

func TestVerifyJudges(t *testing.T) {
	var o, e bytes.Buffer
	std := streams{&o, &e}
	good := &tally{backend: "cpu", op: "attention", variant: "cpu/generic", cases: 7, unsupported: 2}
	if err := judge(std, []*tally{good}, nil); err != nil || !strings.HasSuffix(o.String(), "total: 5 cases, 0 differences\n") {
		t.Errorf("%v, %q", err, o.String())
	}
	for _, bad := range []*tally{{cases: 1, difference: 3}, {cases: 1, failed: 1}, {}} {
		if err := judge(std, []*tally{bad}, nil); err == nil {
			t.Errorf("%+v: no error", bad)
		}
	}
	if got := variantOf("cpu/avx2/exact/f32/d128"); got != "avx2" {
		t.Errorf("variant %q", got)
	}
}

func TestPolicies(t *testing.T) {
	for name, want := range map[string]kernel.Policy{"exact": kernel.Exact, "FAST": kernel.Fast} {
		if got, err := parsePolicy(name); err != nil || got != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestTrainSavesAndGoesOn(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "text")
	if err := os.WriteFile(data, bytes.Repeat([]byte("for i := range n { sum += i }\n"), 300), 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "m.safetensors")
	args := []string{"train", "-text", data, "-out", out, "-steps", "2", "-decay", "1", "-batch", "4", "-report", "1"}
	if status, text, errors := call(t.Context(), args...); status != 0 || !strings.Contains(text, "held out") {
		t.Fatalf("status %d\n%s\n%s", status, text, errors)
	}
	if status, text, errors := call(t.Context(), "train", "-text", data, "-out", out, "-resume"); status != 0 || !strings.Contains(text, "from step 2") {
		t.Errorf("status %d\n%s\n%s", status, text, errors)
	}
	if status, _, text := call(t.Context(), "extrapolate", "-model", out, "-out", filepath.Join(dir, "r"), "-methods", "rope", "-lengths", "1x", "-windows", "1", "-trials", "10"); status != 0 {
		t.Errorf("the trained model: status %d, %s", status, text)
	}
}
