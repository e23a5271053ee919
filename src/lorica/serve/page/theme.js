// Applies the chosen appearance before the first paint. Not a module: modules run after it.
try {
  const theme = localStorage.getItem("lorica.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is blocked: the system's appearance is used.
}
