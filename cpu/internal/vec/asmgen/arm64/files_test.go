package arm64

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the generated files")

// What is committed is what the generator writes.
func TestFilesAreFresh(t *testing.T) {
	for name, want := range Files() {
		path := filepath.Join("..", "..", name)
		if *update {
			if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("%s is not what the generator writes: run go test ./cpu/internal/vec/asmgen/arm64 -update", name)
		}
	}
}

// The main loops of the product cost what matmul.go says. With -v it prints
// all of them.
func TestLoopsCostWhatIsSaid(t *testing.T) {
	type cost struct{ loads, all float64 }
	said := map[string]cost{
		"mulByRow 8x8":    {4, 20.75},
		"mulByColumn 8x8": {4, 20.5},
		"mulByRow 4x16":   {5, 20.75},
		"mulByRow 2x32":   {8.5, 22.25},
		"mulByRow 1x32":   {16.5, 28},
	}
	count := func(s, pattern string) float64 {
		return float64(len(regexp.MustCompile(pattern).FindAllString(s, -1)))
	}
	loop := regexp.MustCompile(`(?s)tile(\w+)loop:\n(.*?CBNZ[^\n]*)`)
	for _, f := range strings.Split(matmul(), "TEXT ·")[1:] {
		name, _, _ := strings.Cut(f, "(")
		for _, m := range loop.FindAllStringSubmatch(f, -1) {
			tile, fmlas := name+" "+m[1], count(m[2], "FMLA")
			got := cost{
				loads: (count(m[2], `FMOVQ|LDR Q`) + 2*count(m[2], `FLDPQ`)) * 16 / fmlas,
				all:   count(m[2], `(?m)^\t`) * 16 / fmlas,
			}
			t.Logf("%-18s per 16 FMLA: %5.2f registers of 16 bytes loaded, %5.2f instructions", tile, got.loads, got.all)
			if want, ok := said[tile]; ok && got != want {
				t.Errorf("%s: %+v for 16 FMLA, matmul.go says %+v", tile, got, want)
			}
			delete(said, tile)
		}
	}
	if len(said) > 0 {
		t.Errorf("no loops of %v", said)
	}
}
