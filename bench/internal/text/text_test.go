package text

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t *testing.T, root, name, data string) {
	t.Helper()
	path := filepath.Join(root, "src", filepath.FromSlash(name))
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func names(files []Source) string {
	var out []string
	for _, f := range files {
		out = append(out, f.Name)
	}
	return strings.Join(out, " ")
}

func TestTrainingAndHeldOutAreApart(t *testing.T) {
	root := t.TempDir()
	for _, name := range []string{
		"fmt/print.go", "fmt/doc.txt", "net/http/server.go", "net/http.go", "go/types/api.go", "fmt/testdata/x.go",
		"vendor/a/b.go", "unicode/tables.go", "syscall/zsysnum.go",
	} {
		write(t, root, name, name)
	}
	write(t, root, "big/big.go", strings.Repeat("x", maxFile+1))
	training, err := Sources(root, false)
	if err != nil {
		t.Fatal(err)
	}
	held, err := Sources(root, true)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := names(training), "fmt/print.go net/http.go"; got != want {
		t.Errorf("training on %s, want %s", got, want)
	}
	if got, want := names(held), "go/types/api.go net/http/server.go"; got != want {
		t.Errorf("held out %s, want %s", got, want)
	}
	if _, err := Sources(filepath.Join(root, "none"), true); err == nil {
		t.Error("no error for a root that is not there")
	}
}

func TestChooseLeavesOutCopies(t *testing.T) {
	line := func(s string) string { return "a line that is more than long enough: " + s + "\n" }
	training := []Source{{"cmd/a.go", []byte(line("1") + line("2") + line("3"))}}
	held := []Source{
		{"go/types/copy.go", []byte(line("1") + line("2") + line("own"))},
		{"go/types/own.go", []byte(line("1") + line("own 1") + line("own 2") + line("own 3"))},
		{"go/types/own_test.go", []byte(line("own"))},
		{"net/http/big.go", bytes.Repeat([]byte("x"), 200)},
	}
	if got, want := names(Choose(held, training, 190, 0.3)), "go/types/own.go"; got != want {
		t.Errorf("chose %s, want %s", got, want)
	}
}

func TestCompressRoundTrip(t *testing.T) {
	want := bytes.Repeat([]byte("long contexts "), 100)
	z, err := Compress(want)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Expand(z); err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	for n := range z {
		if _, err := Expand(z[:n]); err == nil {
			t.Fatalf("%d of %d bytes expand", n, len(z))
		}
	}
}

func TestReadSaysWhatIsWrong(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t")
	if _, err := Read(path, 1); err == nil {
		t.Error("no error for a file that is not there")
	}
	if err := os.WriteFile(path, []byte("short"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(path, 6); err == nil || !strings.Contains(err.Error(), "5 bytes, want at least 6") {
		t.Errorf("%v", err)
	}
	if _, err := Read(path, 5); err != nil {
		t.Error(err)
	}
}
