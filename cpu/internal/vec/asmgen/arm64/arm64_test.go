package arm64

import (
	"flag"
	"os"
	"path/filepath"
	"testing"
)

var generate = flag.Bool("generate", false, "write the files")

func TestFilesAreFresh(t *testing.T) {
	for name, text := range Files() {
		path := filepath.Join("..", "..", name)
		if *generate {
			if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
				t.Fatal(err)
			}
			continue
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != text {
			t.Errorf("%s is not what the generator writes: go test ./cpu/internal/vec/asmgen/arm64 -generate", name)
		}
	}
}
