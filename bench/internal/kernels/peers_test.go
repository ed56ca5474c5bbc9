package kernels

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// program writes a shell script that can be run.
func program(t *testing.T, body string) string {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("needs a POSIX shell")
	}
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

var (
	fullPrefill = Case{Kind: Prefill, KV: Types[0], HeadDim: 128, Heads: 8, KVHeads: 2, Length: 4096, Threads: 2}
	decode      = Case{Kind: Decode, KV: Types[1], HeadDim: 128, Heads: 32, KVHeads: 8, PageSize: 64, Length: 32768, Threads: 1}
)

// torchFake answers as torch.py does; flash takes 0.5 s, math fails.
const torchFake = `
log="$(dirname "$0")/log"
echo '{"version": "9.9"}'
while read -r line; do
	echo "$line" >> "$log"
	case "$line" in
	*'"dtype":"bfloat16"'*) echo '{"error": "RuntimeError: no bfloat16"}' ;;
	*'"dtype"'*) echo '{}' ;;
	*'"flash"'*) echo '{"seconds": 0.5}' ;;
	*'"math"'*) echo '{"error": "RuntimeError: no math"}' ;;
	esac
done
`

func TestTorch(t *testing.T) {
	path := program(t, torchFake)
	torch, err := StartTorch(t.Context(), path, "cpu", 1<<40, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer torch.Close()
	list, err := torch.Contenders(t.Context(), decode, 8)
	if err != nil || len(list) != 2 || list[0].Variant != "flash" || list[1].Variant != "math" || list[0].Peer != "pytorch 9.9" {
		t.Fatalf("%+v, %v", list, err)
	}
	if s, err := list[0].Time(t.Context(), 3); s != 0.5 || err != nil {
		t.Errorf("flash: %v, %v", s, err)
	}
	if _, err := list[1].Time(t.Context(), 3); err == nil || err.Error() != "RuntimeError: no math" {
		t.Errorf("math: %v", err)
	}
	log, err := os.ReadFile(filepath.Join(filepath.Dir(path), "log"))
	want := `{"case":{"device":"cpu","dtype":"float16","heads":32,"kv_heads":8,"head_dim":128,"length":32768,"queries":1,"causal":false,"layers":8,"threads":1}}
{"backend":"flash","n":3}
{"backend":"math","n":3}
`
	if err != nil || string(log) != want {
		t.Errorf("it was asked %s, want %s; %v", log, want, err)
	}
	refused := decode
	refused.KV = Types[2]
	list, err = torch.Contenders(t.Context(), refused, 1)
	if err != nil || len(list) != 2 || list[0].Time != nil || list[1].Note != "RuntimeError: no bfloat16" {
		t.Errorf("a case that is refused: %+v, %v", list[0], err)
	}
	refused.KV.Torch = ""
	if list, err = torch.Contenders(t.Context(), refused, 1); err != nil || !strings.HasPrefix(list[0].Note, "no counterpart") {
		t.Errorf("a type it lacks: %+v, %v", list[0], err)
	}
	torch.max = time.Second
	if list, err = torch.Contenders(t.Context(), fullPrefill, 1); err != nil || list[0].Note != "" || !strings.Contains(list[1].Note, "-max 1s") {
		t.Errorf("a second for math: %+v, %v", list[1], err)
	}
	torch.memory = 500 << 20
	if list, err = torch.Contenders(t.Context(), fullPrefill, 1); err != nil || list[0].Note != "" || !strings.Contains(list[1].Note, "GiB") {
		t.Errorf("scores of 1.6 GiB: %+v, %v", list[1], err)
	}
	torch.memory = 1 << 20
	if list, err = torch.Contenders(t.Context(), fullPrefill, 1); err != nil || !strings.Contains(list[0].Note, "GiB") {
		t.Errorf("too little memory: %+v, %v", list[0], err)
	}
}

func TestTorchThatDoesNotWork(t *testing.T) {
	for body, want := range map[string]string{
		"echo ModuleNotFoundError: No module named torch >&2; exit 1": "No module named torch",
		"echo hello; read -r line":                                    `got "hello"`,
	} {
		if _, err := StartTorch(t.Context(), program(t, body), "cpu", 1, time.Hour); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "-python") {
			t.Errorf("%s: %v, want %q", body, err, want)
		}
	}
	if _, err := StartTorch(t.Context(), filepath.Join(t.TempDir(), "none"), "cpu", 1, time.Hour); err == nil || !strings.Contains(err.Error(), "-python") {
		t.Errorf("no such program: %v", err)
	}
	torch, err := StartTorch(t.Context(), program(t, "echo '{\"version\": \"9\"}'; read -r line; echo killed >&2"), "cpu", 1<<40, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer torch.Close()
	if _, err := torch.Contenders(t.Context(), decode, 1); !errors.Is(err, errTorchEnded) || !strings.Contains(err.Error(), "killed") {
		t.Errorf("it ended: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := StartTorch(ctx, program(t, "exec sleep 100"), "cpu", 1, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("it does not answer: %v", err)
	}
}

// ggmlFake answers as test-backend-ops does, to "op 42".
const ggmlFake = `
dir="$(dirname "$0")"
echo "$OMP_THREAD_LIMIT $*" >> "$dir/log"
while [ $# -gt 1 ]; do shift; done
printf 'Testing 1 devices\n\nBackend 1/1: CPU\n  Device description: A processor\n'
while read -r op type rest; do
	if [ "$op" = 42 ]; then
		name="${rest##* }"
		echo "$op $type $rest" > "$dir/line"
		case "$name" in
		op*) printf '  FLASH_ATTN_EXT(name=%s,type=f32,ne=[64,1,1,1],sources=f32[64,1,1,1]): \033[1;32mSUPPORTED\033[0m\n' "$name" ;;
		*) printf '  FLASH_ATTN_EXT(name=%s,type=f32,ne=[128,32,1,1],op_params=[0:1035273459,3:10],sources=f32[128,1,32,1],f16[128,32768,8,1],f16[128,32768,8,1]):                     64 runs - 16390.67 us/run -   131104 kB/run - \033[1;34m   7.63 GB/s\033[0m\n' "$name" ;;
		esac
	fi
done < "$1"
printf '  Backend CPU: \033[1;32mOK\033[0m\n1/1 backends passed\n\033[1;32mOK\033[0m\n'
`

func TestGGML(t *testing.T) {
	path := program(t, ggmlFake)
	g, err := StartGGML(t.Context(), path, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		g.Close()
		if _, err := os.Stat(g.folder); err == nil {
			t.Errorf("%s is left", g.folder)
		}
	}()
	list, err := g.Contenders(t.Context(), decode, 1)
	if err != nil || len(list) != 1 || list[0].Peer != "ggml" || !list[0].Alone {
		t.Fatalf("%+v, %v", list, err)
	}
	if s, err := list[0].Time(t.Context(), 1); err != nil || math.Abs(s-0.01639067) > 1e-12 {
		t.Errorf("%v s, %v", s, err)
	}
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(filepath.Dir(path), name))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	// result f32 [128, 32 heads, 1 query, 1]; scale and precision; F32 queries
	// [128, 1, 32, 1], whose heads are far apart, and twice F16 [128, 32768, 8, 1]
	scale := int32(math.Float32bits(float32(1 / math.Sqrt(128))))
	want := fmt.Sprintf("42 0 128 32 1 1 4 %d 0 0 10 3 0 128 1 32 1 4 512 %d %d 1 128 32768 8 1 0 0 0 0 1 128 32768 8 1 0 0 0 0 case", scale, ggmlGap(decode), 32*ggmlGap(decode))
	if got := read("line"); got != want {
		t.Errorf("operation\n%s, want\n%s", got, want)
	}
	calls := strings.Split(read("log"), "\n")
	if last := calls[len(calls)-1]; !strings.HasPrefix(last, "1 perf -b CPU -o FLASH_ATTN_EXT --test-file ") {
		t.Errorf("called as %q", last)
	}
	if list, err = g.Contenders(t.Context(), fullPrefill, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := list[0].Time(t.Context(), 1); err != nil {
		t.Error(err)
	}
	calls = strings.Split(read("log"), "\n")
	if last := calls[len(calls)-1]; !strings.HasPrefix(last, "2 perf ") {
		t.Errorf("two threads: called as %q", last)
	}
	g.max = time.Second
	if list, err := g.Contenders(t.Context(), fullPrefill, 1); err != nil || !strings.Contains(list[0].Note, "-max 1s") {
		t.Errorf("a second: %+v, %v", list[0], err)
	}
	causal := fullPrefill
	causal.Causal = true
	none := decode
	none.KV.GGML = -1
	for _, c := range []Case{causal, none} {
		if list, err := g.Contenders(t.Context(), c, 1); err != nil || list[0].Time != nil || !strings.HasPrefix(list[0].Note, "no counterpart") {
			t.Errorf("%v: %+v, %v", c, list[0], err)
		}
	}
}

func TestGGMLThatDoesNotWork(t *testing.T) {
	for body, want := range map[string]string{
		"echo Usage: something else; exit 1":                   "exit status 1",
		"echo 'cannot load libggml' >&2; exit 127":             "cannot load libggml",
		"echo 'Testing 1 devices'; echo '1/1 backends passed'": "knows no FLASH_ATTN_EXT",
	} {
		if _, err := StartGGML(t.Context(), program(t, body), time.Hour); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "test-backend-ops") {
			t.Errorf("%s: %v, want %q", body, err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	if _, err := StartGGML(ctx, program(t, "exec sleep 100"), time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("it does not end: %v", err)
	}
}

func TestGGMLOutput(t *testing.T) {
	const before = "Backend 1/1: CPU\n  FLASH_ATTN_EXT(name=other,type=f32):  9 runs - 1.00 us/run - x\n  FLASH_ATTN_EXT(name=case,type=f32,ne=[1,1,1,1],sources=f32[1]nb[4,512,64,512],f32[2]): "
	for rest, want := range map[string]float64{
		"          1025 runs -  7091.61 us/run -     8192 kB/run - \033[1;34m   1.10 GB/s\033[0m\n": 7091.61e-6,
		"             4 runs - 435242.25 us/run -  7391232 kB/run - x\n":                            0.43524225,
		"not supported\n": 0,
		"             4 runs -     0.00 us/run - 1 kB/run\n": 0,
		"":                    0,
		"             4 runs": 0,
	} {
		got, err := parseGGML(before + rest)
		if math.Abs(got-want) > 1e-12 || (err == nil) != (want > 0) {
			t.Errorf("%q: %v, %v, want %v", rest, got, err, want)
		}
	}
	if _, err := parseGGML(before + "not supported\n"); err == nil || !strings.HasPrefix(err.Error(), "no counterpart") {
		t.Errorf("not supported: %v", err)
	}
}

// With the gap the binary repeats a case, by its own rule, as often as about a
// second takes; and no head lies in another.
func TestGGMLGap(t *testing.T) {
	a := Default([]int{1, 2})
	gaps := 0
	for _, c := range a.Cases(true) {
		gap := ggmlGap(c)
		if gap > 0 && (gap < c.queryBytes()/int64(c.Heads) || gap%64 != 0) {
			t.Fatalf("%v: heads of %d bytes are %d apart", c, c.queryBytes()/int64(c.Heads), gap)
		}
		if gap > 0 {
			gaps++
		}
		size := float64(gap*int64(c.Heads-1)) + c.Bytes()
		runs := math.Floor(ggmlRepeat/size) + 1
		if seconds := runs * c.FLOP() / (ggmlRate(c) * float64(c.Threads)); runs > 2 && seconds > 2.5 {
			t.Errorf("%v: %v repetitions take %.1f s", c, runs, seconds)
		}
	}
	if gaps == 0 {
		t.Error("no case has a gap")
	}
}
